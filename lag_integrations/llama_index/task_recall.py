"""Recalls once for each task, however often the steps of an agent ask for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from lag_integrations.chat.query import QueryOf, query_of
from lag_integrations.llama_index.capture.current import note_recalled, retrieved
from lag_integrations.llama_index.capture.messages import as_step, is_observation
from lag_integrations.llama_index.message_tag import is_carrier
from lag_integrations.memory.rendering import HEADING, MAX_CHARS, logs_texts
from lag_integrations.memory.results import RecalledLog, SearchResult
from lag_integrations.memory.safe_recall import Recalled, SafeRecall
from lag_integrations.traces.conversation import last_two
from lag_integrations.traces.provenance import CODE_RESULT

_TASKS = 64
"""Most tasks that go on at once, in all sessions that share a memory block."""


@dataclass(frozen=True)
class Task:
    """What a conversation asks for.

    Attributes:
        text: What the user said last.
        turn: How many times the user spoke.
        query: What logs are searched by.
        before: What the user said before that.
    """

    text: str
    turn: int
    query: str
    before: str | None = None


def is_task(message: ChatMessage) -> bool:
    """Return whether this is the user's own: no carrier, and no result of an agent's code."""
    return (
        message.role == MessageRole.USER
        and not is_carrier(message)
        and not (message.content or "").startswith(CODE_RESULT)
    )


def user_texts(messages: Sequence[ChatMessage]) -> list[str]:
    """Return the user's own texts, in order, without results that agents put into that role."""
    texts: list[str] = []
    previous = None
    for message in messages:
        answered = previous is not None and previous.role == MessageRole.ASSISTANT
        if is_task(message) and not (answered and is_observation(message.content or "")):
            text = message.content or ""
            # The input of an agent's later steps stands in the history already.
            if previous is None or not is_task(previous) or previous.content != text:
                texts.append(text)
        previous = message
    return texts


def task_of(messages: Sequence[ChatMessage], query: QueryOf | None = None) -> Task | None:
    """Return the task at hand; None if the user said nothing.

    Args:
        messages: The conversation.
        query: What logs are searched by instead: a text, or a function of the messages.
    """
    texts = user_texts(messages)
    if not texts:
        return None
    search_text = query_of(query, [message for message in messages if not is_carrier(message)])
    if search_text is not None:
        return Task(texts[-1], len(texts), search_text)
    text, before = last_two(texts)
    return Task(texts[-1], len(texts), text, before)


class TaskRecall:
    """Recalls once for each task."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Recalled] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        recall: SafeRecall,
        task: Task,
        messages: Sequence[ChatMessage],
        session: str | None,
        run: str | None,
    ) -> SearchResult:
        """Return the logs of a task, without turns that stand in the prompt.

        Logs are left out from the step on that retrieves a newer version of their documents.

        Args:
            recall: How logs are recalled.
            task: The task.
            messages: The conversation, as far as it stands in the prompt.
            session: Its id.
            run: The run in which it is asked for, as far as that is known.
        """
        settings = (
            recall.memory.id,
            recall.k,
            recall.min_score,
            json.dumps(recall.where, default=repr),
            recall.owner,
            recall.steps,
        )
        key = (settings, session, task, run)
        sources = retrieved()
        with self._lock:
            found = self._found.get(key)
        if found is None:
            prompt = [as_step(message) for message in messages if not is_carrier(message)]
            found = Recalled(recall, task.query, before=task.before, prompt=prompt, shown=sources)
            with self._lock:
                self._found[key] = found
                if len(self._found) > _TASKS:
                    del self._found[next(iter(self._found))]
        return found.use(sources)

    def forget(self) -> None:
        """Forget all tasks: a new one begins, maybe in the same words."""
        with self._lock:
            self._found.clear()


def text_blocks(logs: Sequence[RecalledLog]) -> list[TextBlock]:
    """Return logs as text for a prompt, a block each, without the worst of too many."""
    texts = [f"{text}\n" for text in logs_texts(logs, MAX_CHARS)]
    if texts:
        texts[0] = HEADING + texts[0]
    note_recalled({text: log.id for text, log in zip(texts, logs, strict=False)})
    return [TextBlock(text=text) for text in texts]

"""What a task recalls, once, however often the steps of an agent ask for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock

from lag_integrations.llama_index.capture import note_recalled
from lag_integrations.llama_index.tag import is_carrier
from lag_integrations.memory import RecalledLog
from lag_integrations.recalling import SafeRecall
from lag_integrations.texts import HEADING, MAX_CHARS, logs_texts

_CODE_RESULT = "Result of executing the code given:"
"""What a ``CodeActAgent`` lets the user say."""
_TASKS = 64
"""Tasks that are at work at once, in all sessions that share a memory block."""


@dataclass(frozen=True)
class Task:
    """What a conversation asks for.

    Attributes:
        text: What the user said last.
        turn: How many times the user spoke.
    """

    text: str
    turn: int


def is_task(message: ChatMessage) -> bool:
    """Whether the user says something here: no carrier, and not what an agent's code gave."""
    return (
        message.role == MessageRole.USER
        and not is_carrier(message)
        and not (message.content or "").startswith(_CODE_RESULT)
    )


def task_of(messages: Sequence[ChatMessage]) -> Task | None:
    """The task at hand; None if the user said nothing."""
    text, turn, before = "", 0, None
    for message in messages:
        if is_task(message):
            said = message.content or ""
            # An agent's later steps give as input what stands in the history already.
            if before is None or not is_task(before) or before.content != said:
                text, turn = said, turn + 1
        before = message
    return Task(text, turn) if turn else None


class TaskRecall:
    """Recalls once for each task."""

    def __init__(self) -> None:
        self._found: dict[Hashable, list[RecalledLog]] = {}
        self._lock = threading.Lock()

    def __call__(
        self, recall: SafeRecall, task: Task, session: str | None, run: str | None
    ) -> list[RecalledLog]:
        """The logs of a task; none of its own session, while earlier turns stand in the prompt.

        Args:
            recall: How logs are recalled.
            task: The task.
            session: The conversation.
            run: The run in which it is asked for, as far as that is known.
        """
        settings = (recall.memory.id, recall.k, recall.min_score, json.dumps(recall.where))
        key = (settings, session, task, run)
        with self._lock:
            found = self._found.get(key)
        if found is None:
            found = recall(task.text, but_thread=session if task.turn > 1 else None)
            with self._lock:
                self._found[key] = found
                if len(self._found) > _TASKS:
                    del self._found[next(iter(self._found))]
        return found

    def forget(self) -> None:
        """A new task begins, be it in the same words."""
        with self._lock:
            self._found.clear()


def text_blocks(logs: Sequence[RecalledLog]) -> list[TextBlock]:
    """Logs as text for a prompt, a block each; the worst that are too much are left out."""
    texts = [f"{text}\n" for text in logs_texts(logs, MAX_CHARS)]
    if texts:
        texts[0] = HEADING + texts[0]
    note_recalled({text: log.id for text, log in zip(texts, logs, strict=False)})
    return [TextBlock(text=text) for text in texts]

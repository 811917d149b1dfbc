"""A block of LlamaIndex's `Memory` that recalls logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import ConfigDict, PrivateAttr
from llama_index.core.memory import BaseMemoryBlock
from llama_index.core.utils import get_tokenizer
from typing_extensions import Unpack

from lag_integrations.capture.run_metadata import Metadata, in_scope
from lag_integrations.errors import LAGError, SettingsError
from lag_integrations.llama_index.capture.handlers import Need, instrumentation
from lag_integrations.llama_index.capture.tags import current_tags, run_metadata
from lag_integrations.llama_index.message_tag import carrier
from lag_integrations.llama_index.messages import as_chat
from lag_integrations.llama_index.settings import RecallSettings, RecallSettingsDict
from lag_integrations.llama_index.task_recall import TaskRecall, is_task, task_of, text_blocks
from lag_integrations.memory.memory import LogMemory
from lag_integrations.store.filters import Where
from lag_integrations.traces.search_keys import response_text
from lag_integrations.traces.trace import Outcome, Trace

logger = logging.getLogger(__name__)

_MEDIA = ("image", "audio", "video", "document")
_LOOKED_AT = 50
"""Logs of a session among which a turn is looked for, the newest."""


class KVLogMemoryBlock(BaseMemoryBlock[Any], RecallSettings):
    """Recalls what similar runs did before, for agents and chat engines with a ``Memory``.

    Logs are recalled by the last user message, once for a task. They are named in an empty message
    that only a `LAGLLM` understands, and takes out. With ``as_text=True`` they are text, for any
    LLM. A ``ReActAgent`` puts its own system message in the place of the memory's: for text it
    needs ``Memory(…, insert_method=InsertMethod.USER)``.

    Runs in which the memory is read are captured. Turns that the short-term memory ejects become
    logs, if they are not yet, and are recalled like any other; those that stand in the prompt are
    not. The session of the ``Memory`` is the thread of the logs.

    A ``Memory`` cannot be kept within a ``Context``, with whichever blocks; `LAGMemory` can.

    Example:
        .. code-block:: python

            memory = Memory.from_defaults(memory_blocks=[KVLogMemoryBlock(KVLogMemory("./memory"))])

    Args:
        memory: Where logs are recalled from.
        name: Name of the block; a prompt with text shows it.
        description: What it holds, for people.
        priority: Other than 0, a ``Memory`` that is over its token limit may leave the block out:
            text log by log, the worst first.
        accept_short_term_memory: Whether turns that the short-term memory ejects become logs.
        **settings: The fields of `RecallSettings`: ``k``, ``min_score``, ``where``, ….

    Raises:
        ValueError: There is no memory of logs, or a setting is unknown or not valid.
        StoreError: The filter is malformed.
        TraceError: The metadata has a key that is taken, or a value that nothing can be found by.
    """

    model_config = ConfigDict(extra="forbid")

    _memory: LogMemory = PrivateAttr()
    _tasks: TaskRecall = PrivateAttr(default_factory=TaskRecall)
    _need: Need = PrivateAttr(default_factory=instrumentation.need)

    def __init__(
        self,
        memory: LogMemory,
        *,
        name: str = "similar_runs",
        description: str | None = None,
        priority: int = 0,
        accept_short_term_memory: bool = True,
        **settings: Unpack[RecallSettingsDict],
    ) -> None:
        if not isinstance(memory, LogMemory):
            raise SettingsError(
                "A KVLogMemoryBlock needs a memory of logs: "
                "KVLogMemoryBlock(KVLogMemory('./logs'))."
            )
        fields: dict[str, Any] = {
            "name": name,
            "description": description,
            "priority": priority,
            "accept_short_term_memory": accept_short_term_memory,
            **settings,
        }
        super().__init__(**fields)
        self._check()
        self._memory = memory

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> KVLogMemoryBlock:
        return self.model_copy()  # of the memory there is one

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        memory, session = self._memory, block_kwargs.get("session_id")
        task = task_of(messages or [], self.query)
        run_id = self._open_run(memory, task, session)
        if task is None:
            return []
        recall = self._safe_recall(memory, session)
        # A block is not told of new tasks: outside of a run, nothing says that it is the same one.
        once = TaskRecall() if run_id is None else self._tasks
        found = await asyncio.to_thread(once, recall, task, messages or [], session, run_id)
        logs = [log.for_task(task.text) for log in found.logs]
        ids = [log.reference for log in logs]
        return text_blocks(logs) if self.as_text else [carrier(memory, ids)]

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.to_thread(self._keep, messages)

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> Any:
        """Leave out the worst logs until the rest fits; a message that says nothing stays."""
        if not content or not isinstance(content[0], TextBlock):
            return content
        kept, tokenizer = list(content), get_tokenizer()
        while kept and tokens_to_truncate > 0:
            tokens_to_truncate -= len(tokenizer(kept.pop().text))
        return kept or None

    def _keep(self, messages: Sequence[ChatMessage]) -> None:
        metadata = {**run_metadata(current_tags()), **self.metadata}
        for turn in _turns(messages):
            try:  # one that is refused costs the others nothing
                trace = _as_trace(turn, in_scope(metadata))
                if not self._is_known(trace, metadata):
                    self._memory.add_own([trace], judged=False)
            except LAGError as error:
                logger.warning("A turn that left the memory did not become a log. %s", error)

    def _is_known(self, turn: Trace, metadata: Metadata) -> bool:
        """Return whether a captured run, maybe with more around it, is a log that says the same."""
        memory, response = self._memory, turn.last_response.strip()
        session = turn.metadata.get("thread_id")
        if session is not None:
            ledger = memory.store.ledger
            logs = ledger.having({"thread_id": session}, limit=_LOOKED_AT).values()
            if any(_says(log, turn.task, response) for log in logs):
                return True
        outcomes = get_args(Outcome)
        near = memory.recall(
            response_text(turn),
            k=5,
            min_score=-1,
            where=_with_metadata(metadata),
            outcomes=outcomes,
            count=False,
            unjudged_documents="any",
        )
        return any(_says(log.trace, turn.task, response) for log in near)


def _with_metadata(metadata: Metadata) -> Where | None:
    """Return a filter for logs with these metadata."""
    values = [
        {key: value}
        for key, items in metadata.items()
        for value in (items if isinstance(items, list) else [items])
    ]
    return {"$and": values} if values else None


def _turns(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """Yield the messages of each task that was answered."""
    turns: list[list[ChatMessage]] = []
    for message in messages:
        if is_task(message):
            turns.append([])
        if turns:
            turns[-1].append(_without_media(message))
    for turn in turns:
        if any(m.role == MessageRole.ASSISTANT and (m.content or "").strip() for m in turn):
            yield turn


def _as_trace(turn: Sequence[ChatMessage], metadata: Metadata) -> Trace:
    session = turn[0].additional_kwargs.get("session_id")
    own = {"source": "llama_index"} | ({"thread_id": session} if session else {})
    return Trace.from_messages(as_chat(turn), metadata={**metadata, **own})


def _without_media(message: ChatMessage) -> ChatMessage:
    blocks = [block for block in message.blocks if block.block_type not in _MEDIA]
    return message.model_copy(update={"blocks": blocks})


def _says(log: Trace, task: str, response: str) -> bool:
    """Return whether a log has this task and response.

    In a ReAct agent's memory, thoughts stand before the response.
    """
    logged = log.last_response.strip()
    return log.task.strip() == task.strip() and bool(logged) and response.endswith(logged)

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

from lag_integrations.errors import LAGError
from lag_integrations.llama_index.capture import open_run
from lag_integrations.llama_index.recalled import TaskRecall, is_task, task_of, text_blocks
from lag_integrations.llama_index.tag import carrier
from lag_integrations.llama_index.translate import as_chat
from lag_integrations.memory import KVLogMemory
from lag_integrations.recalling import SafeRecall
from lag_integrations.store.filters import condition
from lag_integrations.trace import Outcome, Trace
from lag_integrations.traces.search_keys import response_text

logger = logging.getLogger(__name__)

_MEDIA = ("image", "audio", "video", "document")
_LOOKED_AT = 50
"""Logs of a session among which a turn is looked for, the newest."""


class KVLogMemoryBlock(BaseMemoryBlock[Any]):
    """Gives what similar runs did before to agents and chat engines with a ``Memory``.

    Logs are recalled by the last user message, once for a task, and named in a message that says
    nothing and that `LAGLLM` takes out: for that LLM only. With ``as_text=True`` they are text, for
    any LLM. A ``ReActAgent`` puts its own system message in the place of the memory's: for text it
    needs ``Memory(…, insert_method=InsertMethod.USER)``.

    Runs in which the memory is read are captured. Turns that the short-term memory ejects become
    logs, if they are not yet. The session of the ``Memory`` is the thread of the logs; none of them
    is recalled while earlier turns of it stand in the prompt.

    A ``Memory`` cannot be kept within a ``Context``, with whichever blocks; `LAGMemory` can.

    Example:
        .. code-block:: python

            memory = Memory.from_defaults(memory_blocks=[KVLogMemoryBlock(KVLogMemory("./memory"))])

    Args:
        memory: Where logs are recalled from.
        name: Name of the block; a prompt with text shows it.
        k: Most logs to recall; the memory's own by default.
        min_score: Least similarity; the memory's own by default.
        where: Only logs with such metadata.
        as_text: Give logs as text, for LLMs that are not a `LAGLLM`.
        capture: Capture the runs in which the memory is read.
        **settings: Those of every block. With a ``priority`` other than 0, a ``Memory`` that is
            over its token limit may leave the block out: text log by log, the worst first.

    Raises:
        ValueError: A setting is unknown or not valid.
        StoreError: The filter is malformed.
    """

    model_config = ConfigDict(extra="forbid")

    k: int | None = None
    min_score: float | None = None
    where: dict[str, Any] | None = None
    as_text: bool = False
    capture: bool = True

    _memory: KVLogMemory = PrivateAttr()
    _tasks: TaskRecall = PrivateAttr(default_factory=TaskRecall)

    def __init__(self, memory: KVLogMemory, *, name: str = "similar_runs", **settings: Any) -> None:
        super().__init__(name=name, **settings)
        if self.where is not None:
            condition(self.where)
        self._memory = memory

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> KVLogMemoryBlock:
        return self.model_copy()  # of the memory there is one

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        memory, session = self._memory, block_kwargs.get("session_id")
        run = open_run(memory, thread=session) if self.capture else None
        task = task_of(messages or [])
        if task is None:
            return []
        recall = SafeRecall(memory, self.k, self.min_score, self.where)
        # A block is not told of new tasks: outside of a run, nothing says that it is the same one.
        once = TaskRecall() if run is None else self._tasks
        logs = await asyncio.to_thread(once, recall, task, session, run)
        return text_blocks(logs) if self.as_text else [carrier(memory, [log.id for log in logs])]

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
        try:
            for turn in _turns(messages):
                if not self._is_known(turn):
                    self._memory.add(turn)
        except LAGError as error:
            logger.warning("Messages that left the memory did not become logs. %s", error)

    def _is_known(self, turn: Trace) -> bool:
        """Whether a log says the same: its run was captured, maybe with more around it."""
        memory, response = self._memory, turn.last_response.strip()
        session = turn.metadata.get("thread_id")
        if session is not None:
            ledger = memory.store.ledger
            logs = ledger.having({"thread_id": session}, limit=_LOOKED_AT).values()
            if any(_says(log, turn.task, response) for log in logs):
                return True
        outcomes = get_args(Outcome)
        near = memory.recall(response_text(turn), k=5, min_score=-1, outcomes=outcomes, count=False)
        return any(_says(log.log, turn.task, response) for log in near)


def _turns(messages: Sequence[ChatMessage]) -> Iterator[Trace]:
    """What was asked and answered, a trace for each task."""
    turns: list[list[ChatMessage]] = []
    for message in messages:
        if is_task(message):
            turns.append([])
        if turns:
            turns[-1].append(_without_media(message))
    for turn in turns:
        if not any(m.role == MessageRole.ASSISTANT and (m.content or "").strip() for m in turn):
            continue
        session = turn[0].additional_kwargs.get("session_id")
        metadata = {"source": "llama_index"} | ({"thread_id": session} if session else {})
        yield Trace.from_messages(as_chat(turn), metadata=metadata)


def _without_media(message: ChatMessage) -> ChatMessage:
    blocks = [block for block in message.blocks if block.block_type not in _MEDIA]
    return message.model_copy(update={"blocks": blocks})


def _says(log: Trace, task: str, response: str) -> bool:
    """Whether that was answered so; a ReAct agent's memory has the thoughts before the answer."""
    said = log.last_response.strip()
    return log.task.strip() == task.strip() and bool(said) and response.endswith(said)

"""A memory for agents and chat engines: their conversation, and what similar runs did."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
)
from llama_index.core.llms import LLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
from llama_index.core.storage.chat_store import SimpleChatStore
from pydantic import FieldSerializationInfo
from typing_extensions import Unpack

from lag_integrations.errors import SettingsError, StoreError
from lag_integrations.llama_index.capture.handlers import Need, instrumentation
from lag_integrations.llama_index.message_tag import carrier, tagged
from lag_integrations.llama_index.settings import RecallSettings, RecallSettingsDict
from lag_integrations.llama_index.task_recall import TaskRecall, is_task, task_of, text_blocks
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.registry import open_memories
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.safe_recall import miss_report
from lag_integrations.store.database import LEDGER_FILE

logger = logging.getLogger(__name__)

_opening = threading.Lock()


class LAGMemory(BaseMemory, RecallSettings):
    """Recalls what similar runs did before, for agents and chat engines, and captures what they do.

    The conversation is kept by another memory, the history. When it is read, the logs that fit the
    task (``input``, else the last user message) are recalled, once for a task. They are named in a
    copy of the last user message, by which a `LAGLLM` injects their KV. The stored conversation
    stays as it is. Turns that stand in what the history returns are not recalled; those that it has
    let go are. If the memory of logs fails, a warning is logged and the agent goes on without.

    An LLM that is not a `LAGLLM` gets the logs as text with ``as_text=True``. A context chat engine
    asks before the user's first message is in the history: the logs are then named in a message of
    their own that `LAGLLM` takes out (``CondensePlusContextChatEngine`` takes it for a conversation
    and condenses its first question, too, unless ``skip_condense=True``).

    It is kept as JSON (``to_json``, ``from_json``, within a ``Context``) with a history that is a
    ``ChatMemoryBuffer`` in memory, as it is by default; another history keeps its messages itself.
    The logs are in their folder: the `KVLogMemory` that is open there is used again, else one is
    opened with its defaults. Open yours before, if it has another embedder, ledger or index.

    Example:
        .. code-block:: python

            memory = LAGMemory(KVLogMemory("./memory"))
            agent = FunctionAgent(llm=llm, tools=tools)
            await agent.run("How do we ship to Norway?", memory=memory)

    Args:
        memory: Where logs are recalled from, and runs are captured.
        history: Keeps the conversation; see the field.
        session_id: Names the conversation; see the field.
        path: Folder of the logs, instead of a memory.
        namespace: Tenant of the logs, with a path.
        **settings: The other fields.

    Raises:
        ValueError: There is no memory, or a setting is unknown or not valid.
        StoreError: The filter is malformed.
        TraceError: The metadata has a key that is taken, or a value that nothing can be found by.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    path: str
    """Folder of the logs."""
    namespace: str
    """Tenant of the logs."""
    session_id: str = Field(default_factory=lambda: uuid4().hex)
    """Name of the conversation, which is the thread of its logs; a new one by default."""
    history: BaseMemory = Field(default_factory=ChatMemoryBuffer.from_defaults, repr=False)
    """Keeps the conversation; a ``ChatMemoryBuffer`` of 3,000 tokens by default, or of what fits an
    LLM with `from_defaults`."""

    _memory: LogMemory | None = PrivateAttr(default=None)
    _tasks: TaskRecall = PrivateAttr(default_factory=TaskRecall)
    _need: Need = PrivateAttr(default_factory=instrumentation.need)
    _last_recall: dict[str, Any] | None = PrivateAttr(default=None)

    def __init__(
        self,
        memory: LogMemory | None = None,
        *,
        history: BaseMemory | None = None,
        session_id: str | None = None,
        path: str | None = None,
        namespace: str | None = None,
        **settings: Unpack[RecallSettingsDict],
    ) -> None:
        if isinstance(memory, LogMemory):
            path, namespace = str(memory.path.absolute()), memory.namespace
        elif memory is not None or path is None:
            raise SettingsError(
                "A LAGMemory needs a memory of logs: LAGMemory(KVLogMemory('./logs'))."
            )
        fields: dict[str, Any] = {**settings, "path": path, "namespace": namespace}
        fields.pop("class_name", None)  # of a dict that LlamaIndex made
        if history is not None:
            fields["history"] = history
        if session_id is not None:
            fields["session_id"] = session_id
        super().__init__(**fields)
        self._check()
        self._memory = memory

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return "LAGMemory"

    @classmethod
    def from_defaults(  # type: ignore[override]
        cls,
        memory: LogMemory | None = None,
        chat_history: list[ChatMessage] | None = None,
        llm: LLM | None = None,
        token_limit: int | None = None,
        session_id: str | None = None,
        **settings: Unpack[RecallSettingsDict],
    ) -> LAGMemory:
        """Return a memory that begins with a conversation, or whose history fits an LLM.

        Args:
            memory: Where logs are recalled from, and runs are captured.
            chat_history: What was said before.
            llm: The history takes three quarters of its window.
            token_limit: Most tokens of the history instead.
            session_id: Names the conversation; a new one by default.
            **settings: The other fields of `LAGMemory`.
        """
        history = ChatMemoryBuffer.from_defaults(chat_history, llm, token_limit=token_limit)
        return cls(memory, history=history, session_id=session_id, **settings)

    @property
    def last_recall(self) -> dict[str, Any] | None:
        """Return what was recalled last: ``recalled`` (log ids, best first) and their ``scores``.

        Where nothing was, the ``nearest_miss`` is the most relevant log below the floor. And the
        ``run_id`` of the run that it was recalled for, for `KVLogMemory.feedback`; None if
        that is not captured. None before the first recall.
        """
        return self._last_recall

    @property
    def tokenizer_fn(self) -> Callable[[str], list[Any]]:
        """Return the history's tokenizer, by which chat engines count what their prompts take."""
        return self.history.tokenizer_fn  # type: ignore[attr-defined, no-any-return]

    def get(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Return the conversation, with the logs that fit the task."""
        messages = self.history.get(input, **kwargs)
        return self._with_logs(messages, input, *self._recall(messages, input))

    async def aget(self, input: str | None = None, **kwargs: Any) -> list[ChatMessage]:
        """Return the conversation, with the logs that fit the task."""
        messages = await self.history.aget(input, **kwargs)
        found = await asyncio.to_thread(self._recall, messages, input)
        return self._with_logs(messages, input, *found)

    def get_all(self) -> list[ChatMessage]:
        """Return the conversation as it was."""
        return self.history.get_all()

    async def aget_all(self) -> list[ChatMessage]:
        """Return the conversation as it was."""
        return await self.history.aget_all()

    def put(self, message: ChatMessage) -> None:
        """Add a message."""
        self._note_tasks([message])
        self.history.put(message)

    async def aput(self, message: ChatMessage) -> None:
        """Add a message."""
        self._note_tasks([message])
        await self.history.aput(message)

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages."""
        self._note_tasks(messages)
        self.history.put_messages(messages)

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages."""
        self._note_tasks(messages)
        await self.history.aput_messages(messages)

    def set(self, messages: list[ChatMessage]) -> None:
        """Replace the conversation."""
        self._tasks.forget()
        self.history.set(messages)

    async def aset(self, messages: list[ChatMessage]) -> None:
        """Replace the conversation."""
        self._tasks.forget()
        await self.history.aset(messages)

    def reset(self) -> None:
        """Forget the conversation and begin a new session. No logs are forgotten."""
        self.history.reset()
        self.session_id = uuid4().hex

    async def areset(self) -> None:
        """Forget the conversation and begin a new session. No logs are forgotten."""
        await self.history.areset()
        self.session_id = uuid4().hex

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LAGMemory:
        # The logs are one, however many conversations there are.
        history = copy.deepcopy(self.history, memo)
        copied = self.model_copy(update={"history": history, "session_id": uuid4().hex})
        copied._tasks = TaskRecall()
        copied._last_recall = None
        return copied

    def __getstate__(self) -> dict[Any, Any]:
        return {"__dict__": dict(self.__dict__)}  # the base class would try to pickle the clients

    @field_serializer("where", "query")
    def _refuse_functions(self, value: Any, info: FieldSerializationInfo) -> Any:
        if callable(value):  # without where=, everybody's logs would be recalled
            raise ValueError(
                f"A LAGMemory whose {info.field_name}= is a function does not go into JSON. Make "
                "it again as you made it, with the same session_id."
            )
        return value

    @field_serializer("history")
    def _history_to_json(self, history: BaseMemory) -> dict[str, Any]:
        if not isinstance(history, ChatMemoryBuffer) or not isinstance(
            history.chat_store, SimpleChatStore
        ):
            raise ValueError(
                f"A history that is a {history.class_name()} with a store of its own does not go "
                "into JSON. Make it again as you made it, and a LAGMemory with it, with the same "
                "session_id."
            )
        return {
            "token_limit": history.token_limit,
            "messages": [message.model_dump(mode="json") for message in history.get_all()],
        }

    @field_validator("history", mode="before")
    @classmethod
    def _history_from_json(cls, history: Any) -> Any:
        if not isinstance(history, Mapping):
            return history
        messages = [ChatMessage.model_validate(message) for message in history["messages"]]
        return ChatMemoryBuffer.from_defaults(messages, token_limit=history["token_limit"])

    def _note_tasks(self, messages: Sequence[ChatMessage]) -> None:
        if any(is_task(message) for message in messages):
            self._tasks.forget()

    def _recall(
        self, messages: Sequence[ChatMessage], input: str | None
    ) -> tuple[LogMemory | None, list[RecalledLog] | None]:
        """Return the memory, if there is one, and the logs, if there is a task."""
        try:
            memory = self._open_memory()
        except StoreError as error:
            logger.warning("Nothing is recalled. %s", error)
            return None, None
        # Context chat engines take a QueryBundle for a message, too, and hand it on.
        asked = [ChatMessage(role=MessageRole.USER, content=str(input))] if input else []
        task = task_of([*messages, *asked], self.query)
        run_id = self._open_run(memory, task, self.session_id)
        if task is None:
            return memory, None
        recall = self._safe_recall(memory, self.session_id)
        found = self._tasks(recall, task, messages, self.session_id, run_id)
        self._last_recall = {
            "run_id": run_id,
            "recalled": [log.id for log in found.logs],
            "scores": [log.score for log in found.logs],
            "nearest_miss": miss_report(found.nearest_miss),
        }
        return memory, [log.for_task(task.text) for log in found.logs]

    def _with_logs(
        self,
        messages: list[ChatMessage],
        input: str | None,
        memory: LogMemory | None,
        logs: list[RecalledLog] | None,
    ) -> list[ChatMessage]:
        if memory is None or logs is None:
            return messages
        users = [place for place, message in enumerate(messages) if is_task(message)]
        ids = [log.reference for log in logs]
        # Text is for LLMs that may hand an unknown field of a message to their API: no tag then.
        blocks = text_blocks(logs) if self.as_text else []
        if not users and not self.as_text:
            return [*messages, carrier(memory, ids)]
        if not users or (self.as_text and input and messages[users[-1]].content != str(input)):
            # The task is not in the history yet: what stands there is of an earlier one.
            own = ChatMessage(role=MessageRole.USER, blocks=list(blocks))
            return [*messages, own] if blocks else messages
        messages, place = list(messages), users[-1]
        messages[place] = (
            _with_blocks(messages[place], blocks)
            if self.as_text
            else tagged(messages[place], memory, ids)
        )
        return messages

    def _open_memory(self) -> LogMemory:
        memory = self._memory
        # It was made from JSON, or closed since.
        if memory is None or open_memories.find(memory.id) is None:
            with _opening:
                opened = open_memories.find_at(self.path, self.namespace)
                if opened is None and memory is None:
                    opened = _open(Path(self.path), self.namespace)
            # What was closed on purpose stays closed.
            self._memory = memory = opened or memory
        assert memory is not None
        return memory


def _with_blocks(message: ChatMessage, blocks: Sequence[Any]) -> ChatMessage:
    return message.model_copy(update={"blocks": [*blocks, *message.blocks]})


def _open(path: Path, namespace: str) -> LogMemory:
    if not (path / LEDGER_FILE).exists():
        raise StoreError(
            f"There is no memory of logs at {path}. If its ledger is on a server, or the folder "
            "was moved, open the KVLogMemory before, or give it to a new LAGMemory."
        )
    return LogMemory(path, namespace=namespace)

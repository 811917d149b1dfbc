"""Captures whole LangChain runs as traces, off the hot path and without ever raising."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from lag_integrations.errors import TraceError
from lag_integrations.trace import Message, Outcome, Trace, as_message

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory

logger = logging.getLogger(__name__)

# What chains commonly call their question.
_TASK_KEYS = ("question", "input", "query", "task", "messages")


@dataclass
class _Run:
    """One root run while it lasts."""

    id: UUID
    task: str | None = None  # what the root was given
    asked: str | None = None  # what the first model call was asked
    name: str | None = None
    messages: list[Message] = field(default_factory=list)
    helped_by: dict[str, None] = field(default_factory=dict)
    unseen: list[Message] = field(default_factory=list)  # tool results not in a prompt yet
    cut_off: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    def extend(self, messages: Sequence[Message]) -> None:
        """Append what is new.

        A model call repeats the conversation so far; that is not logged twice, but what a user
        really says twice is.
        """
        known = Counter(map(_key, self.messages))
        for message in messages:
            key = _key(message)
            if known[key] > 0:
                known[key] -= 1
            else:
                self.messages.append(message)
                if message.role == "tool":
                    self.unseen = [one for one in self.unseen if one.text != message.text]


class CaptureHandler(BaseCallbackHandler):
    """Turns every root run it sees into a trace of a memory.

    Give it to a run (``config={"callbacks": [handler]}``), so that it sees the whole run: the model
    calls with their messages, and the tools. One handler serves any number of concurrent runs. The
    trace goes to the ledger when the run ends; encoding happens on the memory's worker thread.

    A run that ended with an error is a ``failure``, one whose answer was cut off for length is
    ``unknown``, any other a ``success``.

    Args:
        memory: Where the traces go.
    """

    run_inline = True  # keeps the order of events in async runs

    def __init__(self, memory: KVLogMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._runs: dict[UUID, _Run] = {}

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """A chain, graph or node begins."""
        run = self._enter(run_id, parent_run_id)
        if run.id == run_id:
            run.task, run.name = _task(inputs), name

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is called."""
        run = self._enter(run_id, parent_run_id)
        steps = [_step(message) for batch in messages for message in batch]
        if run.asked is None:
            run.asked = next((step.text for step in reversed(steps) if step.role == "user"), None)
        with self._lock:
            run.extend(steps)

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """A text model is called: its prompt is a user message."""
        run = self._enter(run_id, parent_run_id)
        if run.asked is None and prompts:
            run.asked = prompts[-1]
        with self._lock:
            run.extend([Message(role="user", content=prompt) for prompt in prompts])

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered."""
        run = self._runs.get(run_id)
        if run is None:
            return
        for generations in response.generations:
            for generation in generations[:1]:
                if isinstance(generation, ChatGeneration):
                    message = _step(generation.message)
                    metadata = generation.message.response_metadata
                else:
                    message = Message(role="assistant", content=generation.text)
                    metadata = generation.generation_info or {}
                with self._lock:
                    run.messages.append(message)
                    run.cut_off = metadata.get("finish_reason") == "length"
                    for key in (metadata.get("lag") or {}).get("log_ids", ()):
                        run.helped_by[key] = None
        self._leave(run_id)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model call failed; the run as a whole may still succeed."""
        self._leave(run_id, error)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool is called."""
        self._enter(run_id, parent_run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool returned; the model may see its result in the next call, or never."""
        run = self._runs.get(run_id)
        if run is not None and run.id != run_id:
            with self._lock:
                if isinstance(output, ToolMessage):
                    run.messages.append(_step(output))
                else:  # the agent may wrap it in a message of its own
                    result = Message(role="tool", content=str(output), name=kwargs.get("name"))
                    run.unseen.append(result)
        self._leave(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool failed; the agent may recover."""
        self._leave(run_id, error)

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **kwargs: Any,
    ) -> None:
        """A retriever is called; what it finds stands in the prompts that use it."""
        self._enter(run_id, parent_run_id)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever returned."""
        self._leave(run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever failed."""
        self._leave(run_id, error)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, graph or node ended. A streamed chain knows its whole input only now."""
        run = self._runs.get(run_id)
        if run is not None and run.id == run_id and run.task is None:
            run.task = _task(kwargs.get("inputs"))
        self._leave(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, graph or node failed."""
        self._leave(run_id, error)

    def _enter(self, run_id: UUID, parent_run_id: UUID | None) -> _Run:
        with self._lock:
            run = self._runs.get(parent_run_id) if parent_run_id is not None else None
            if run is None:  # a root, or a child of something this handler was not given to
                run = _Run(run_id)
            self._runs[run_id] = run
            return run

    def _leave(self, run_id: UUID, error: BaseException | None = None) -> None:
        with self._lock:
            run = self._runs.pop(run_id, None)
            if run is None or run.id != run_id:
                return
            for key in [key for key, other in self._runs.items() if other is run]:
                del self._runs[key]  # children that never ended
        try:
            self._memory.add(_trace(run, error))
        except TraceError as reason:
            logger.debug("Run %s was not captured: %s", run_id, reason)
        except Exception:
            # A memory must never break the application that it remembers.
            logger.exception("Run %s could not be captured.", run_id)


def _trace(run: _Run, error: BaseException | None) -> Trace:
    outcome: Outcome = "failure" if error else "unknown" if run.cut_off else "success"
    metadata: dict[str, Any] = {"source": "langchain"}
    if run.name:
        metadata["run_name"] = run.name
    if error is not None:
        metadata["error"] = type(error).__name__
    return Trace.from_messages(
        [*run.messages, *run.unseen],
        task=run.task or run.asked,
        outcome=outcome,
        id=run.id.hex,
        started_at=run.started_at,
        ended_at=datetime.now(timezone.utc),
        helped_by=tuple(run.helped_by),
        metadata=metadata,
    )


def _step(message: BaseMessage) -> Message:
    """A message as a step; what has no place in a trace is kept as text."""
    try:
        return as_message(message)
    except TraceError:
        said = message.type in ("ai", "AIMessageChunk")
        return Message(role="assistant" if said else "user", content=str(message.text))


def _key(message: Message) -> tuple[Any, ...]:
    if message.role == "tool" and message.tool_call_id:
        return ("tool", message.tool_call_id)
    return (message.role, message.text, tuple((call.name, call.id) for call in message.tool_calls))


def _task(inputs: Any) -> str | None:
    """The question in a chain's input; None where the model's messages must tell."""
    if isinstance(inputs, str):
        return inputs or None
    if isinstance(inputs, Mapping):
        for key in _TASK_KEYS:
            if key in inputs and (task := _task(inputs[key])):
                return task
        texts = [value for value in inputs.values() if isinstance(value, str)]
        return (texts[0] or None) if len(inputs) == 1 and texts else None
    if isinstance(inputs, BaseMessage):
        return as_message(inputs).text if inputs.type == "human" else None
    if isinstance(inputs, Sequence):
        for item in reversed(inputs):
            if isinstance(item, BaseMessage | Mapping | tuple) and (text := _user_text(item)):
                return text
    return None


def _user_text(item: Any) -> str | None:
    if isinstance(item, tuple) and len(item) == 2:  # ("human", "…")
        item = {"role": item[0], "content": item[1]}
    try:
        message = as_message(item)
    except ValueError:
        return None
    return message.text if message.role == "user" else None

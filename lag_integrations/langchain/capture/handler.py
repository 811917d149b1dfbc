"""Captures whole LangChain runs as traces, off the hot path and without ever raising."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers.context import register_configure_hook

from lag_integrations.capture.judges import Judge, add_judged, is_uncaptured, judges_of
from lag_integrations.capture.log_exceptions import quiet
from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.capture.run_metadata import Metadata, checked_metadata
from lag_integrations.errors import StoreError, TraceError
from lag_integrations.langchain.capture.configs import said_of_run
from lag_integrations.langchain.capture.messages import task_of
from lag_integrations.langchain.capture.pending_runs import shared_by
from lag_integrations.langchain.capture.run import Run
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from langchain_core.callbacks.manager import BaseRunManager
    from langchain_core.runnables import RunnableConfig
    from langgraph.callbacks import GraphInterruptEvent, GraphResumeEvent

    from lag_integrations.memory.memory import LogMemory

try:  # LangGraph tells only handlers of its own kind about interrupts.
    from langgraph.callbacks import GraphCallbackHandler as _Handler
    from langgraph.errors import GraphBubbleUp
except ImportError:
    _Handler = BaseCallbackHandler  # type: ignore[assignment, misc]

    class GraphBubbleUp(Exception):  # type: ignore[no-redef]
        """Never raised without LangGraph."""


logger = logging.getLogger(__name__)

_MAX_OPEN = 1_000
_MAX_AGE = 24 * 3600.0
"""Runs that go on at most, and seconds after their last sign of life."""
_LINGER = 60.0
"""Seconds that an abandoned stream gets for its model's last words."""
_MAX_ORPHANS = 10_000


@dataclass(frozen=True)
class _Node:
    """A run of the tree."""

    run: Run  # of its root
    thread: str | None


class CaptureHandler(_Handler):
    """Turns every root run it sees into a trace of a memory.

    Give it to a run (``config={"callbacks": [handler]}``), so that it sees the whole run: the model
    calls with their messages, the tools, and agents within tools. One handler serves any number of
    concurrent runs. The trace goes to the ledger when the run ends; encoding happens on the
    memory's worker thread.

    A run of a thread (a checkpointed agent) holds what is new in its turn. One that is interrupted,
    for a human to decide, is logged with what follows when its thread is resumed.

    A run that ended with an error, or with a call that cannot be read, is a ``failure``; one whose
    answer was cut off for length or that was abandoned is ``incomplete``; any other is what the
    judge says: a ``success`` by default.

    The texts, numbers and booleans in the metadata of a run's config become its log's, and so do
    its tags (``tags``) and its name (``run_name``): logs are found by them (``where=``).

    Args:
        memory: Where the traces go.
        judge: Called in the background with the trace of each run that came to a good end;
            says whether it is a success (True, False, None, or an outcome). The log is recorded
            before, as ``unknown``. See also `LLMJudge`.
        metadata: Metadata of all logs of this handler: texts, numbers, booleans, or lists of these.
            It wins over that of the config.

    Raises:
        TraceError: The metadata has a key that is taken, or a value that nothing can be found by.
    """

    run_inline = True  # keeps the order of events in async runs

    def __init__(
        self,
        memory: LogMemory,
        judge: Judge | None = None,
        *,
        metadata: Metadata | None = None,
    ) -> None:
        self.memory = memory
        self._judge = judge
        self.metadata = checked_metadata(metadata)
        self._shared = shared_by(memory)
        self._lock = threading.Lock()
        self._nodes: dict[UUID, _Node] = {}
        self._roots: OrderedDict[UUID, Run] = OrderedDict()  # the longest silent first
        self._orphans: OrderedDict[UUID, None] = OrderedDict()  # whose root ended before them

    def wait_for_judge(self) -> None:
        """Wait until every run that ended so far is judged, before the memory is closed."""
        judges_of(self.memory).wait()

    def retrieved(self, run_id: UUID) -> list[Source]:
        """Return what was retrieved so far in the root run that a run belongs to."""
        with self._lock:
            node = self._nodes.get(run_id)
            return [] if node is None else list(node.run.sources)

    @quiet
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chain, graph or node begins."""
        run = self._enter(run_id, parent_run_id, metadata, kwargs, inputs)
        if run is not None and run.id != run_id and getattr(inputs, "resume", None) is not None:
            run.paused = False

    @quiet
    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is called."""
        self._call(run_id, parent_run_id, metadata, kwargs, messages)

    @quiet
    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A text model is called: its prompt is a user message."""
        messages = [[HumanMessage(prompt)] for prompt in prompts]
        self._call(run_id, parent_run_id, metadata, kwargs, messages)

    @quiet
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered."""
        with self._lock:
            if node := self._nodes.get(run_id):
                for message in _answers(response):
                    node.run.say(message, run_id)
        self._leave(run_id)

    @quiet
    def on_llm_error(
        self,
        error: BaseException,
        *,
        run_id: UUID,
        response: LLMResult | None = None,
        **kwargs: Any,
    ) -> None:
        """A model call failed; the run as a whole may still succeed."""
        with self._lock:
            node = self._nodes.get(run_id)
            if node is not None and response is not None and is_cancellation(error):
                for message in _answers(response)[:1]:  # what there is of it
                    node.run.say(message, run_id)
        self._leave(run_id, error=error)

    @quiet
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool is called."""
        self._enter(run_id, parent_run_id, metadata, kwargs)

    @quiet
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool returned; the model may see its result in the next call, or never."""
        with self._lock:
            node = self._nodes.get(run_id)
            if node is not None and node.run.id != run_id:
                node.run.result(output, kwargs.get("name"), run_id)
        self._leave(run_id)

    @quiet
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool failed; the agent may recover."""
        self._leave(run_id, error=error)

    @quiet
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A retriever is called; what it finds stands in the prompts that use it."""
        self._enter(run_id, parent_run_id, metadata, kwargs)

    @quiet
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever returned."""
        with self._lock:
            if node := self._nodes.get(run_id):
                node.run.found(documents)
        self._leave(run_id)

    @quiet
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A retriever failed."""
        self._leave(run_id, error=error)

    @quiet
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, graph or node ended. A streamed chain knows its whole input only now."""
        self._leave(run_id, outputs=outputs, inputs=kwargs.get("inputs"))

    @quiet
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain, graph or node failed."""
        self._leave(run_id, error=error, inputs=kwargs.get("inputs"))

    @quiet
    def on_interrupt(self, event: GraphInterruptEvent) -> None:
        """A graph waits for a human, or stopped at a breakpoint."""
        self._pause(event.run_id, True)

    @quiet
    def on_resume(self, event: GraphResumeEvent) -> None:
        """A graph goes on after an interrupt."""
        self._pause(event.run_id, False)

    def _pause(self, run_id: UUID | None, paused: bool) -> None:
        with self._lock:
            node = None if run_id is None else self._nodes.get(run_id)
            if node is not None and node.thread == node.run.thread:
                node.run.paused = paused

    def _call(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: dict[str, Any] | None,
        fields: Mapping[str, Any],
        prompts: Sequence[Sequence[BaseMessage]],
    ) -> None:
        run = self._enter(run_id, parent_run_id, metadata, fields)
        if run is not None:
            with self._lock:
                run.calls.add(run_id)
                for messages in prompts:
                    run.show(messages, run_id)

    def _enter(
        self,
        run_id: UUID,
        parent_run_id: UUID | None,
        metadata: dict[str, Any] | None,
        fields: Mapping[str, Any],
        inputs: Any = None,
    ) -> Run | None:
        """A run begins; ``fields`` are its ``name`` and ``tags``."""
        if is_uncaptured():
            return None
        metadata = metadata or {}
        thread = metadata.get("thread_id")
        with self._lock:
            if parent_run_id in self._orphans:
                self._orphans[run_id] = None
                return None
            parent = None if parent_run_id is None else self._nodes.get(parent_run_id)
            if parent is None:  # a root, or a child of something this handler was not given to
                said = said_of_run(metadata, fields.get("tags"))
                run = Run(run_id, inputs, fields.get("name"), {**said, **self.metadata})
            else:
                assert parent_run_id is not None
                run = parent.run
                run.parents[run_id] = parent_run_id
            self._nodes[run_id] = _Node(run, None if thread is None else str(thread))
            self._touch(run)
            run.is_graph = run.is_graph or "langgraph_step" in metadata
            if run.thread is None and thread is not None:
                run.thread = str(thread)
                if half := self._shared.take_half(run.thread, run.metadata):
                    run.follow(half)
            stale = [] if parent is not None else self._stale()
        for one in stale:
            self._record(one)
        return run

    def _leave(
        self,
        run_id: UUID,
        *,
        outputs: Any = None,
        error: BaseException | None = None,
        inputs: Any = None,
    ) -> None:
        with self._lock:
            node = self._nodes.pop(run_id, None)
            if node is None:
                return
            run = node.run
            was_call = run_id in run.calls
            run.calls.discard(run_id)
            if isinstance(error, GraphBubbleUp):
                if node.thread == run.thread and type(error).__name__ != "ParentCommand":
                    run.paused = True
            elif error is not None and run.id != run_id and not was_call:
                run.fail(run_id)
            if run.id == run_id:
                if run.task is None:
                    run.task = task_of(inputs)
                run.end(outputs, error)
                if run.failed and not isinstance(error, GraphBubbleUp):
                    run.paused = False
            self._touch(run)
            # A chain whose stream is closed ends before its model does.
            if not run.ended or (run.abandoned and run.calls and not run.is_graph):
                return
            self._forget(run)
        self._record(run)

    def _touch(self, run: Run) -> None:
        run.touched = time.monotonic()
        self._roots[run.id] = run
        self._roots.move_to_end(run.id)

    def _stale(self) -> list[Run]:
        """Runs that are given up."""
        now = time.monotonic()
        stale = [
            run
            for run in self._roots.values()
            if now - run.touched > (_LINGER if run.ended else _MAX_AGE)
        ]
        if not stale and len(self._roots) > _MAX_OPEN:
            stale = [next(iter(self._roots.values()))]
        for run in stale:
            run.abandoned = True
            self._forget(run)
        return stale

    def _forget(self, run: Run) -> None:
        self._roots.pop(run.id, None)
        self._nodes.pop(run.id, None)
        self._orphans[run.id] = None
        for run_id in run.parents:
            if self._nodes.pop(run_id, None) is not None:
                self._orphans[run_id] = None
        while len(self._orphans) > _MAX_ORPHANS:
            self._orphans.popitem(last=False)

    def _record(self, run: Run) -> None:
        try:
            if not self._shared.is_first(run.id):
                return
            if run.thread is not None and run.waits_for_more:
                self._shared.keep_half(run.thread, run)
                return
            trace = run.trace()
            add_judged(self.memory, self._judge, trace)
        except TraceError as reason:
            logger.debug("Run %s was not captured: %s", run.id, reason)
        except StoreError as reason:
            logger.warning("Run %s could not be captured: %s", run.id, reason)


def _answers(response: LLMResult) -> list[BaseMessage]:
    found: list[BaseMessage] = []
    for generations in response.generations:
        for generation in generations[:1]:
            if isinstance(generation, ChatGeneration):
                found.append(generation.message)
            else:
                info = generation.generation_info or {}
                found.append(AIMessage(generation.text, response_metadata=info))
    return found


_capturing: ContextVar[CaptureHandler | None] = ContextVar("lag_capturing", default=None)
register_configure_hook(_capturing, inheritable=True)


@contextmanager
def capture(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Iterator[CaptureHandler]:
    """Capture all runs that begin in here; see `KVLogMemory.capture`."""
    handler = CaptureHandler(memory, judge, metadata=metadata)
    token = _capturing.set(handler)
    try:
        yield handler
    finally:
        _capturing.reset(token)


def owner_of(config: RunnableConfig, run: BaseRunManager | None = None) -> Owner:
    """Return whose run a call belongs to, by what becomes the metadata of its log.

    Args:
        config: The config of the call (see `config_of`).
        run: The call's own, where that is known.
    """
    callbacks = config.get("callbacks") or []
    handlers = callbacks if isinstance(callbacks, list) else callbacks.handlers
    metadata = dict(config.get("metadata") or {})
    for handler in (*handlers, *(() if run is None else run.handlers), _capturing.get()):
        if isinstance(handler, CaptureHandler):
            metadata |= handler.metadata
    return Owner.of(metadata)


def captured_by(run: BaseRunManager | None) -> LogMemory | None:
    """Return the memory that a run is captured in, if it is."""
    for handler in () if run is None else run.handlers:
        if isinstance(handler, CaptureHandler):
            return handler.memory
    return None


def retrieved() -> list[Source]:
    """Return what was retrieved in the root run that a call is part of, where that is captured."""
    # Streams are told of no run manager.
    callbacks = ensure_config().get("callbacks")
    if not isinstance(callbacks, BaseCallbackManager) or callbacks.parent_run_id is None:
        return []
    captures = [one for one in callbacks.handlers if isinstance(one, CaptureHandler)]
    return [source for one in captures for source in one.retrieved(callbacks.parent_run_id)]

"""Which span and event belongs to which run, and when a run is over."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator, Hashable, Mapping, Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from inspect import BoundArguments
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.workflow.workflow_events import ToolCallResult
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionInProgressEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
from llama_index.core.tools.types import BaseTool, ToolOutput
from llama_index.core.workflow import Workflow
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.span import active_span_id

from lag_integrations.capture.judges import is_uncaptured
from lag_integrations.capture.log_exceptions import quiet
from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.llama_index.capture.messages import (
    answer_of,
    is_resumed,
    node_sources,
    result_of,
    task_of,
)
from lag_integrations.llama_index.capture.recorder import Recorder
from lag_integrations.llama_index.capture.run import Call, Receiver, Run
from lag_integrations.llama_index.capture.spans import Span, Spans
from lag_integrations.llama_index.capture.tags import said_of_run
from lag_integrations.llama_index.streams import acarried, carried
from lag_integrations.traces.message import Message
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

_MAX_OPEN = 1_000
_MAX_AGE = 24 * 3600.0
"""Runs that go on at most, and seconds after their last sign of life."""
_LINGER = 60.0
"""Seconds that an abandoned run gets for its models' last words."""


@dataclass(frozen=True, eq=False)
class Block:
    """A ``with capture(…)`` block.

    Attributes:
        memory: Where the runs go that begin in it.
        receiver: Their judge and metadata.
        within: The span in which it was entered.
    """

    memory: LogMemory
    receiver: Receiver
    within: str | None


current_block: ContextVar[Block | None] = ContextVar("lag_capture_block", default=None)


class Watch:
    """Sees all of LlamaIndex's spans and events in this process.

    Attributes:
        recorder: Takes the runs that are over.
    """

    def __init__(self) -> None:
        # A collected stream may tell of its end while its thread is in here.
        self._lock = threading.RLock()
        self._spans = Spans()
        self._runs: OrderedDict[Run, None] = OrderedDict()  # the longest silent first
        self._everywhere: list[Block] = []
        self.recorder = Recorder()

    # What LlamaIndex tells

    @quiet
    def enter(
        self, id: str, instance: Any, arguments: BoundArguments, parent_id: str | None
    ) -> None:
        """A call begins."""
        with self._lock:
            span = self._spans.enter(id, instance, arguments, parent_id, is_uncaptured())
            for block in self._blocks_for(span):
                self._open(span, block.memory, block.receiver)
            if _writes_history(span) and (run := span.innermost_run()) is not None:
                run.pending.add(_stream_of(instance))
            if span.parent is None:
                self._give_up_stale()
        self.recorder.settle()

    @quiet
    def exit(self, id: str, result: Any) -> None:
        """A call returned."""
        with self._lock:
            span = self._spans.get(id)
            if span is None:
                return
            run = span.innermost_run()
            try:
                if run is not None and not run.over:
                    self._returned(span, run, result)
            finally:
                self._spans.leave(span)
        self.recorder.settle()

    @quiet
    def drop(self, id: str, error: BaseException | None) -> None:
        """A call failed."""
        error = error or RuntimeError()
        with self._lock:
            span = self._spans.get(id)
            if span is None:
                return
            run = span.innermost_run()
            try:
                if run is not None and not run.over:
                    self._failed(span, run, error)
            finally:
                self._spans.leave(span)
        self.recorder.settle_after(error)

    @quiet
    def on_event(self, event: BaseEvent) -> None:
        """Something happened."""
        if isinstance(event, LLMChatStartEvent):
            self._begin_call(event.span_id, event.messages)
        elif isinstance(event, LLMCompletionStartEvent):
            prompt = ChatMessage(role=MessageRole.USER, content=event.prompt)
            self._begin_call(event.span_id, [prompt])
        elif isinstance(event, LLMChatInProgressEvent | LLMCompletionInProgressEvent):
            span = self._spans.get(event.span_id)
            if span is not None and span.calls:
                span.calls[-1].so_far = event.response
        elif isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            self._end_call(event.span_id, event.response)
            self.recorder.settle()
        elif isinstance(event, ExceptionEvent):
            self._end_call(event.span_id, None, event.exception)
            self.recorder.settle_after(event.exception)
        elif isinstance(event, RetrievalEndEvent):
            sources = dict.fromkeys(node_sources(event.nodes))
            with self._lock:
                span = self._spans.get(event.span_id)
                for each in () if span is None else span.upwards():
                    each.retrieved.update(sources)
                if (run := self._run_at(event.span_id)) is not None:
                    run.found(event.nodes)

    # What our own classes ask for

    def capture_everywhere(self, block: Block) -> None:
        """Capture all runs of this process."""
        with self._lock:
            self._everywhere.append(block)

    def stop(self, block: Block) -> None:
        """Capture them no more."""
        with self._lock:
            if block in self._everywhere:
                self._everywhere.remove(block)
        self.recorder.settle()

    def open(
        self,
        memory: LogMemory,
        receiver: Receiver,
        owner: object,
        thread: str | None,
        task: str | None,
    ) -> str | None:
        """Capture the run that goes on; its id."""
        with self._lock:
            current = self._spans.get(active_span_id.get())
            if current is None or is_uncaptured() or any(one.muted for one in current.upwards()):
                return None
            span = next((each for each in current.upwards() if _fits(each, owner)), None)
            if span is None:
                return None
            span = span.outermost_of(span.instance)
            run = self._open(span, memory, receiver)
            if thread is not None:
                run.thread = run.thread or thread
            run.task = run.task or task
            return run.id

    @quiet
    def recalled(self, texts: Mapping[str, str]) -> None:
        """These texts of logs were put into a prompt of the run that goes on."""
        with self._lock:
            if (run := self._run_at(active_span_id.get())) is not None:
                run.recalled(texts)

    def retrieved(self) -> list[Source]:
        """Return what was retrieved in all that goes on around here."""
        with self._lock:
            span = self._spans.get(active_span_id.get())
            outermost = None if span is None else list(span.upwards())[-1]
            return [] if outermost is None else list(outermost.retrieved)

    def run_id(self) -> str | None:
        """Return the id of the innermost run that goes on here."""
        with self._lock:
            run = self._run_at(active_span_id.get())
            return None if run is None else run.id

    def metadata(self) -> dict[str, Any]:
        """Return what is said of the innermost run that goes on here, as its log will have it."""
        with self._lock:
            run = self._run_at(active_span_id.get())
            if run is None:
                return {}
            said = dict(run.metadata)
            for receiver in run.receivers.values():
                said |= receiver.metadata
            return said if run.thread is None else {**said, "thread_id": run.thread}

    def memory(self) -> LogMemory | None:
        """Return a memory that captures the innermost run that goes on here."""
        with self._lock:
            run = self._run_at(active_span_id.get())
            return None if run is None else next(iter(run.receivers), None)

    def is_choosing(self) -> bool:
        """Whether the run only chooses here."""
        with self._lock:
            span = self._spans.get(active_span_id.get())
            for each in () if span is None else span.upwards():
                if each.chooses:
                    return True
                if each.run is not None:
                    return False
            return False

    # Runs

    def _blocks_for(self, span: Span) -> list[Block]:
        """The blocks that open a run at a span which begins."""
        block = current_block.get()
        if block is None:
            everywhere = span.parent is None and not span.muted
            return list(self._everywhere) if everywhere else []
        entered_here = False
        for each in span.upwards():
            if each.muted:
                return []
            entered_here = entered_here or each.id == block.within
            if each.run is not None:
                takes_over = entered_here and block.memory not in each.run.receivers
                return [block] if takes_over else []
        return [block]

    def _open(self, span: Span, memory: LogMemory, receiver: Receiver) -> Run:
        run = span.run
        if run is None:
            self.recorder.begin()
            # Few-shot examples in a bare call are no history.
            arguments = None if isinstance(span.instance, BaseLLM) else span.arguments
            task = None if arguments is None else task_of(arguments)
            resumed = arguments is not None and task is None and is_resumed(arguments)
            metadata = said_of_run(span.tags)
            run = span.run = Run(span.run_id, span.name, task, metadata, resumed=resumed)
            self._touch(run)
        known = run.receivers.get(memory, receiver)
        run.receivers[memory] = Receiver(known.judge, {**known.metadata, **receiver.metadata})
        return run

    def _run_at(self, span_id: str | None) -> Run | None:
        span = self._spans.get(span_id)
        run = None if span is None else span.innermost_run()
        return None if run is None or run.over else run

    def _returned(self, span: Span, run: Run, result: Any) -> None:
        if span.calls and isinstance(result, Generator | AsyncGenerator):
            for call in span.calls:
                call.streams = True
                weakref.finalize(result, self._left_unread, run, call).atexit = False
        else:
            self._close_calls(span)
        if (output := _tool_result(span, result)) is not None:
            run.result(output)
        if _writes_history(span):
            run.pending.discard(_stream_of(span.instance))
            run.answer = answer_of(span.instance)
        if span.run is run:
            self._end(span, run, result)
        self._touch(run)
        self._finish(run)

    def _failed(self, span: Span, run: Run, error: BaseException) -> None:
        self._close_calls(span)
        if span.run is run:
            run.end(error=error, retrieved=span.retrieved)
        elif _writes_history(span):
            run.pending.discard(_stream_of(span.instance))
            run.fail(error)
        self._touch(run)
        self._finish(run)

    def _end(self, span: Span, run: Run, result: Any) -> None:
        if result is None and isinstance(span.instance, Workflow):
            run.end(error=asyncio.CancelledError(), retrieved=span.retrieved)
            return
        run.end(result, retrieved=span.retrieved)
        if isinstance(result, StreamingResponse | AsyncStreamingResponse):
            if result.response_gen is not None and result.response_txt is None:
                self._carry(span, run, result)
        elif isinstance(result, StreamingAgentChatResponse):
            # A thread or task reads the stream into the history; it may not have begun yet.
            is_read = result.is_done or result.exception is not None
            if result.is_writing_to_memory and not is_read:
                stream = _stream_of(result)
                run.pending.add(stream)
                weakref.finalize(result, self._left_unread, run, stream).atexit = False

    def _carry(
        self, span: Span, run: Run, response: StreamingResponse | AsyncStreamingResponse
    ) -> None:
        """The model is called when the stream is read: let it find the run then."""
        stream, texts = object(), list[Any]()
        run.pending.add(stream)

        def ended(error: BaseException | None) -> None:
            self._read(run, stream, texts, error)

        if isinstance(response, StreamingResponse):
            response.response_gen = carried(
                response.response_gen, context=copy_context(), each=texts.append, ended=ended
            )
        else:
            here = {active_span_id: span.id}
            response.response_gen = acarried(
                response.response_gen, variables=here, each=texts.append, ended=ended
            )

    @quiet
    def _read(
        self, run: Run, stream: object, texts: list[Any], error: BaseException | None
    ) -> None:
        """A carried stream ended."""
        with self._lock:
            run.pending.discard(stream)
            if error is None:
                run.answer = "".join(text for text in texts if isinstance(text, str))
            else:
                run.fail(error)
            self._finish(run)
        self.recorder.settle_after(error)

    @quiet
    def _left_unread(self, run: Run, stream: object) -> None:
        """A stream was collected; there is nothing to do if it was read."""
        with self._lock:
            if stream not in run.pending:
                return
            run.pending.discard(stream)
            if isinstance(stream, Call) and stream.counts:
                run.close(stream, stream.so_far)
            if run.ended and not run.answer:
                run.abandoned = True
            self._finish(run)
        self.recorder.settle_later()

    def _begin_call(self, span_id: str | None, messages: Sequence[ChatMessage]) -> None:
        with self._lock:
            span, run = self._spans.get(span_id), self._run_at(span_id)
            if span is None or run is None:
                return
            call = run.call(span.name, id(span.instance), messages)
            call.counts = not _answers_another(span, call)
            span.calls.append(call)
            run.pending.add(call)
            self._touch(run)

    def _end_call(self, span_id: str | None, response: Any, error: Any = None) -> None:
        with self._lock:
            span = self._spans.get(span_id)
            if span is None or not span.calls:
                return
            call = span.calls.pop()
            run = call.run
            if call not in run.pending:  # its stream was collected before it was closed
                return
            run.pending.discard(call)
            if error is not None and is_cancellation(error):
                response = call.so_far
            if call.counts:
                run.close(call, response)
                if error is not None and run.ended and not run.answer:
                    run.fail(error)
            self._touch(run)
            self._finish(run)

    def _close_calls(self, span: Span) -> None:
        """The method of a model failed, or is no model's and did not end its calls."""
        for call in span.calls:
            call.run.pending.discard(call)
            if call.counts:
                call.run.close(call, None)
        span.calls.clear()

    def _touch(self, run: Run) -> None:
        run.touched = time.monotonic()
        self._runs[run] = None
        self._runs.move_to_end(run)

    def _finish(self, run: Run) -> None:
        if run.is_done and not run.over:
            self._forget(run)

    def _forget(self, run: Run) -> None:
        for call in run.pending:
            if isinstance(call, Call) and call.counts:
                run.close(call, call.so_far)
        run.pending.clear()
        run.over = True
        self._runs.pop(run, None)
        self._spans.forget(run)
        self.recorder.add(run)

    def _give_up_stale(self) -> None:
        now = time.monotonic()
        stale = [
            run
            for run in self._runs
            if now - run.touched > (_LINGER if run.ended and run.abandoned else _MAX_AGE)
        ]
        if not stale and len(self._runs) > _MAX_OPEN:
            stale = [next(iter(self._runs))]
        for run in stale:
            run.abandoned = True
            self._forget(run)


def _fits(span: Span, owner: object) -> bool:
    return span.is_conversation if owner is None else span.instance is owner


def _writes_history(span: Span) -> bool:
    """Whether it reads a chat engine's stream."""
    return isinstance(span.instance, StreamingAgentChatResponse) and span.name.endswith(
        "write_response_to_history"
    )


def _stream_of(response: object) -> Hashable:
    return ("stream", id(response))


def _tool_result(span: Span, result: Any) -> Message | None:
    """What a tool gave to whoever called it."""
    if isinstance(result, ToolCallResult):  # of an agent's step
        return result_of(result.tool_output, result.tool_id)
    if not isinstance(result, ToolOutput) or not isinstance(span.instance, BaseTool):
        return None
    for above in span.upwards():
        if above.run is not None:
            break
        parent = above.parent
        if parent is not None and (
            isinstance(parent.instance, BaseTool) or parent.name.endswith(".call_tool")
        ):
            return None  # which says the same
    return None if span.run is not None else result_of(result, None)


def _answers_another(span: Span, call: Call) -> bool:
    """Whether a model makes a call to answer another one: by itself, or while it streams."""
    for above in span.upwards():
        if above is not span and above.calls:
            return True
        if above.run is not None:
            break
    return any(
        isinstance(other, Call)
        and other.streams
        and other.model == call.model
        and other.by != call.by
        and other.keys == call.keys
        for other in call.run.pending
    )

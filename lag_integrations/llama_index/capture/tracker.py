"""Which span and event belongs to which run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from inspect import BoundArguments
from typing import Any

from llama_index.core.agent.workflow.workflow_events import ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, MessageRole
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

from lag_integrations.capture.judges import is_uncaptured
from lag_integrations.capture.log_exceptions import log_exceptions
from lag_integrations.llama_index.capture.blocks import Block, Blocks
from lag_integrations.llama_index.capture.messages import logs_in, node_sources, result_of
from lag_integrations.llama_index.capture.model_calls import ModelCalls
from lag_integrations.llama_index.capture.open_runs import OpenRuns
from lag_integrations.llama_index.capture.pending_streams import PendingStreams
from lag_integrations.llama_index.capture.recorder import Recorder
from lag_integrations.llama_index.capture.run import Run
from lag_integrations.llama_index.capture.spans import Span
from lag_integrations.traces.message import Message


class RunTracker:
    """Turns LlamaIndex's spans and events into runs.

    Attributes:
        runs: The runs that go on.
    """

    def __init__(self) -> None:
        self.runs = OpenRuns()
        self._blocks = Blocks()
        self._calls = ModelCalls(self.runs)
        self._streams = PendingStreams(self.runs)

    @property
    def recorder(self) -> Recorder:
        """Return what takes the runs that are over."""
        return self.runs.recorder

    @property
    def is_idle(self) -> bool:
        """Return whether nothing that began goes on; False while that cannot be told at once."""
        if not self.runs.lock.acquire(blocking=False):
            return False
        try:
            return not (len(self.runs) or len(self.runs.spans))
        finally:
            self.runs.lock.release()

    def capture_everywhere(self, block: Block) -> None:
        """Capture all runs of this process from now on."""
        with self.runs.lock:
            self._blocks.everywhere.append(block)

    def stop_capturing(self, block: Block) -> None:
        """Capture none of those that begin from now on."""
        with self.runs.lock:
            if block in self._blocks.everywhere:
                self._blocks.everywhere.remove(block)
        self.recorder.settle()

    @log_exceptions
    def on_span_enter(
        self, id: str, instance: Any, arguments: BoundArguments, parent_id: str | None
    ) -> None:
        """Note that a call begins."""
        with self.runs.lock:
            span = self.runs.spans.enter(id, instance, arguments, parent_id, is_uncaptured())
            for block in self._blocks.that_open(span):
                self.runs.open(span, block.memory, block.receiver)
            self._streams.begin_history(span, span.innermost_run())
            if span.parent is None:
                self.runs.give_up_stale()
        self.recorder.settle()

    @log_exceptions
    def on_span_exit(self, id: str, result: Any) -> None:
        """Note that a call returned."""
        with self.runs.lock:
            span = self.runs.spans.get(id)
            if span is None:
                return
            run = span.innermost_run()
            try:
                if run is not None and not run.over:
                    self._returned(span, run, result)
            finally:
                self.runs.spans.leave(span)
        self.recorder.settle()

    @log_exceptions
    def on_span_drop(self, id: str, error: BaseException | None) -> None:
        """Note that a call failed."""
        error = error or RuntimeError()
        with self.runs.lock:
            span = self.runs.spans.get(id)
            if span is None:
                return
            run = span.innermost_run()
            try:
                if run is not None and not run.over:
                    self._failed(span, run, error)
            finally:
                self.runs.spans.leave(span)
        self.recorder.settle_after(error)

    @log_exceptions
    def on_event(self, event: BaseEvent) -> None:
        """Note what happened within a span."""
        if isinstance(event, LLMChatStartEvent):
            self._calls.begin(event.span_id, event.messages)
        elif isinstance(event, LLMCompletionStartEvent):
            prompt = ChatMessage(role=MessageRole.USER, content=event.prompt)
            self._calls.begin(event.span_id, [prompt])
        elif isinstance(event, LLMChatInProgressEvent | LLMCompletionInProgressEvent):
            self._calls.update(event.span_id, event.response)
        elif isinstance(event, LLMChatEndEvent | LLMCompletionEndEvent):
            self._calls.end(event.span_id, event.response)
            self.recorder.settle()
        elif isinstance(event, ExceptionEvent):
            self._calls.end(event.span_id, None, event.exception)
            self.recorder.settle_after(event.exception)
        elif isinstance(event, RetrievalEndEvent):
            self._retrieved(event)

    def _retrieved(self, event: RetrievalEndEvent) -> None:
        sources = dict.fromkeys(node_sources(event.nodes))
        logs = logs_in(event.nodes)  # looked up before others have to wait
        with self.runs.lock:
            span = self.runs.spans.get(event.span_id)
            for each in () if span is None else span.upwards():
                each.retrieved.update(sources)
            if (run := self.runs.at(event.span_id)) is not None:
                run.add_retrieved(logs)

    def _returned(self, span: Span, run: Run, result: Any) -> None:
        if span.calls and isinstance(result, Generator | AsyncGenerator):
            self._streams.follow_calls(span, run, result)
        else:
            self._calls.drop(span)
        if (output := _tool_result(span, result)) is not None:
            run.add_tool_result(output)
        self._streams.end_history(span, run)
        if span.run is run:
            # A workflow that is cancelled returns None.
            cancelled = result is None and isinstance(span.instance, Workflow)
            error = asyncio.CancelledError() if cancelled else None
            run.end(result, error, retrieved=span.retrieved)
            self._streams.follow_answer(span, run, result)
        self.runs.touch(run)
        self.runs.finish_if_done(run)

    def _failed(self, span: Span, run: Run, error: BaseException) -> None:
        self._calls.drop(span)
        if span.run is run:
            run.end(error=error, retrieved=span.retrieved)
        self._streams.end_history(span, run, error)
        self.runs.touch(run)
        self.runs.finish_if_done(run)


def _tool_result(span: Span, result: Any) -> Message | None:
    """Return what a tool returned to whoever called it, once for nested calls."""
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

"""Answers that are streamed: their run is not over before they are read, or left unread."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from contextvars import copy_context
from typing import Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index_instrumentation.span import active_span_id

from lag_integrations.capture.log_exceptions import log_exceptions
from lag_integrations.llama_index.capture.messages import answer_of
from lag_integrations.llama_index.capture.open_runs import OpenRuns
from lag_integrations.llama_index.capture.run import Call, Run
from lag_integrations.llama_index.capture.spans import Span
from lag_integrations.llama_index.streams import in_context, with_variables


class PendingStreams:
    """Follows streams until they end, or their reader lets go of them.

    Args:
        runs: The runs that go on.
    """

    def __init__(self, runs: OpenRuns) -> None:
        self._runs = runs

    def follow_calls(self, span: Span, run: Run, stream: object) -> None:
        """Wait for the end of a model's stream, which an event reports, or the collector."""
        for call in span.calls:
            call.streams = True
            weakref.finalize(stream, self._on_collected, run, call).atexit = False

    def follow_answer(self, span: Span, run: Run, result: object) -> None:
        """Wait for the end of a run's own answer, if it is streamed."""
        if isinstance(result, StreamingResponse | AsyncStreamingResponse):
            if result.response_gen is not None and result.response_txt is None:
                self._wrap(span, run, result)
        elif isinstance(result, StreamingAgentChatResponse):
            # A thread or task reads the stream into the history; it may not have begun yet.
            is_read = result.is_done or result.exception is not None
            if result.is_writing_to_memory and not is_read:
                stream = _stream_of(result)
                run.pending.add(stream)
                weakref.finalize(result, self._on_collected, run, stream).atexit = False

    @staticmethod
    def begin_history(span: Span, run: Run | None) -> None:
        """Note that a chat engine's stream is being read into its history, if it is that."""
        if run is not None and _writes_history(span):
            run.pending.add(_stream_of(span.instance))

    @staticmethod
    def end_history(span: Span, run: Run, error: BaseException | None = None) -> None:
        """Note that it is in the history now, or why it is not."""
        if not _writes_history(span):
            return
        run.pending.discard(_stream_of(span.instance))
        if error is None:
            run.answer = answer_of(span.instance)
        else:
            run.fail(error)

    def _wrap(
        self, span: Span, run: Run, response: StreamingResponse | AsyncStreamingResponse
    ) -> None:
        """Read a response's stream where its run is known: the model is called only then."""
        stream, texts = object(), list[Any]()
        run.pending.add(stream)

        def ended(error: BaseException | None) -> None:
            self._on_end(run, stream, texts, error)

        if isinstance(response, StreamingResponse):
            response.response_gen = in_context(
                response.response_gen, context=copy_context(), each=texts.append, ended=ended
            )
        else:
            here = {active_span_id: span.id}
            response.response_gen = with_variables(
                response.response_gen, variables=here, each=texts.append, ended=ended
            )

    @log_exceptions
    def _on_end(
        self, run: Run, stream: object, texts: list[Any], error: BaseException | None
    ) -> None:
        """Take a wrapped stream's text for the answer, or its error."""
        with self._runs.lock:
            run.pending.discard(stream)
            if error is None:
                run.answer = "".join(text for text in texts if isinstance(text, str))
            else:
                run.fail(error)
            self._runs.finish_if_done(run)
        self._runs.recorder.settle_after(error)

    @log_exceptions
    def _on_collected(self, run: Run, stream: object) -> None:
        """Take what there is of a collected stream, unless it was read."""
        with self._runs.lock:
            if stream not in run.pending:
                return
            run.pending.discard(stream)
            if isinstance(stream, Call) and stream.counts:
                run.end_call(stream, stream.so_far)
            if run.ended and not run.answer:
                run.abandoned = True
            self._runs.finish_if_done(run)
        self._runs.recorder.settle_later()


def _writes_history(span: Span) -> bool:
    """Return whether a span reads a chat engine's stream into its history."""
    return isinstance(span.instance, StreamingAgentChatResponse) and span.name.endswith(
        "write_response_to_history"
    )


def _stream_of(response: object) -> Hashable:
    return ("stream", id(response))

"""The model calls of runs: which ones count, and what each one answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.llama_index.capture.open_runs import OpenRuns
from lag_integrations.llama_index.capture.run import Call
from lag_integrations.llama_index.capture.spans import Span


class ModelCalls:
    """Adds the model calls of spans to their runs.

    Args:
        runs: The runs that go on.
    """

    def __init__(self, runs: OpenRuns) -> None:
        self._runs = runs

    def begin(self, span_id: str | None, messages: Sequence[ChatMessage]) -> None:
        """Note that a model is given messages."""
        runs = self._runs
        with runs.lock:
            span, run = runs.spans.get(span_id), runs.at(span_id)
            if span is None or run is None:
                return
            call = run.begin_call(span.name, id(span.instance), messages)
            call.counts = not _answers_another(span, call)
            span.calls.append(call)
            run.pending.add(call)
            runs.touch(run)

    def update(self, span_id: str | None, response: Any) -> None:
        """Note what a call has streamed so far."""
        span = self._runs.spans.get(span_id)
        if span is not None and span.calls:
            span.calls[-1].so_far = response

    def end(self, span_id: str | None, response: Any, error: BaseException | None = None) -> None:
        """Note what the latest call of a span answered, or why it failed."""
        runs = self._runs
        with runs.lock:
            span = runs.spans.get(span_id)
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
                run.end_call(call, response)
                if error is not None and run.ended and not run.answer:
                    run.fail(error)
            runs.touch(run)
            runs.finish_if_done(run)

    @staticmethod
    def drop(span: Span) -> None:
        """End the calls of a span without an answer.

        The model's method failed; or it is no model's, and did not end its calls.
        """
        for call in span.calls:
            call.run.pending.discard(call)
            if call.counts:
                call.run.end_call(call, None)
        span.calls.clear()


def _answers_another(span: Span, call: Call) -> bool:
    """Return whether a model makes a call to answer another one: by itself, or while it streams."""
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

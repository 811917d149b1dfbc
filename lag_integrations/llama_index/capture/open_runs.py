"""The runs that go on, and when one is over."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from llama_index.core.base.llms.base import BaseLLM

from lag_integrations.llama_index.capture.messages import is_resumed, task_of
from lag_integrations.llama_index.capture.recorder import Recorder
from lag_integrations.llama_index.capture.run import Call, Receiver, Run
from lag_integrations.llama_index.capture.spans import Span, Spans
from lag_integrations.llama_index.capture.tags import run_metadata

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

_MAX_OPEN = 1_000
"""Most runs that go on at once."""
_MAX_AGE = 24 * 3600.0
"""Seconds after its last sign of life until a run is given up."""
_LINGER = 60.0
"""Seconds that an abandoned run gets for its models' last words."""


class OpenRuns:
    """The runs that go on, with the spans that they consist of.

    Whoever calls a method holds the lock.

    Attributes:
        lock: Guards the runs and the spans.
        spans: All spans that are needed.
        recorder: Takes the runs that are over.
    """

    def __init__(self) -> None:
        # A collected stream may report its end while its thread holds the lock.
        self.lock = threading.RLock()
        self.spans = Spans()
        self.recorder = Recorder()
        self._runs: OrderedDict[Run, None] = OrderedDict()  # the longest silent first

    def __len__(self) -> int:
        return len(self._runs)

    def at(self, span_id: str | None) -> Run | None:
        """Return the innermost run that goes on at a span."""
        span = self.spans.get(span_id)
        run = None if span is None else span.innermost_run()
        return None if run is None or run.over else run

    def open(self, span: Span, memory: LogMemory, receiver: Receiver) -> Run:
        """Capture the run of a span, for one more memory if it is captured already."""
        run = span.run
        if run is None:
            self.recorder.begin()
            # Few-shot examples in a bare call are no history.
            arguments = None if isinstance(span.instance, BaseLLM) else span.arguments
            task = None if arguments is None else task_of(arguments)
            resumed = arguments is not None and task is None and is_resumed(arguments)
            metadata = run_metadata(span.tags)
            run = span.run = Run(span.run_id, span.name, task, metadata, resumed=resumed)
            self.touch(run)
        known = run.receivers.get(memory, receiver)
        run.receivers[memory] = Receiver(known.judge, {**known.metadata, **receiver.metadata})
        return run

    def touch(self, run: Run) -> None:
        """Note that a run is alive."""
        run.touched = time.monotonic()
        self._runs[run] = None
        self._runs.move_to_end(run)

    def finish_if_done(self, run: Run) -> None:
        """Hand a run to the recorder if nothing can follow that counts."""
        if run.is_done and not run.over:
            self._finish(run)

    def give_up_stale(self) -> None:
        """Finish the runs that have been silent for too long, or the oldest of too many."""
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
            self._finish(run)

    def _finish(self, run: Run) -> None:
        for call in run.pending:
            if isinstance(call, Call) and call.counts:
                run.end_call(call, call.so_far)
        run.pending.clear()
        run.over = True
        self._runs.pop(run, None)
        self.spans.forget(run)
        self.recorder.add(run)

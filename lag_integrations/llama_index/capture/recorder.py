"""Stores finished runs, on a background thread if the caller may be the garbage collector."""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

from lag_integrations.capture.judges import Judge, add_judged
from lag_integrations.capture.log_exceptions import log_exceptions
from lag_integrations.capture.run_metadata import may_be_one_run, scope_of
from lag_integrations.errors import StoreError, TraceError
from lag_integrations.llama_index.capture.run import Run
from lag_integrations.traces.trace import Trace

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)

_HALVES = 20
"""Abandoned runs of a conversation among which the first half of a resumed one is looked for."""


class Recorder:
    """Stores the traces of finished runs in their memories."""

    def __init__(self) -> None:
        self._over: deque[Run] = deque()
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._at_work = threading.Lock()

    def begin(self) -> None:
        """Start the thread, when a run begins: when it ends, that may be too late."""
        if self._thread is None or not self._thread.is_alive():  # in a fork it is not
            self._at_work = threading.Lock()
            self._thread = threading.Thread(target=self._work, name="lag-capture", daemon=True)
            self._thread.start()

    def add(self, run: Run) -> None:
        """Take a finished run; `settle` stores it."""
        self._over.append(run)

    def settle(self) -> None:
        """Store the finished runs."""
        while self._over:
            try:
                run = self._over.popleft()
            except IndexError:
                return
            self._record(run)

    def wait(self) -> None:
        """Store the finished runs, and wait for those that the thread is storing."""
        self.settle()
        if self._thread is not None and self._thread.is_alive():
            with self._at_work:
                pass

    def settle_later(self) -> None:
        """Let the thread store them.

        The garbage collector may call this in the middle of the store's own work. To put something
        into a SimpleQueue is allowed even then.
        """
        self._wanted.put(None)

    def settle_after(self, error: BaseException | None) -> None:
        """Store them; later, if a stream or coroutine is being closed, maybe by the collector."""
        if isinstance(error, GeneratorExit):
            self.settle_later()
        else:
            self.settle()

    def _work(self) -> None:
        while True:
            self._wanted.get()
            with self._at_work:
                self.settle()

    @log_exceptions
    def _record(self, run: Run) -> None:
        if not run.has_answer and run.error is None:
            return
        for memory, receiver in run.receivers.items():
            try:
                trace = run.trace(receiver.metadata)
                trace.require_response()
                if run.resumed:
                    _add_resumed(memory, receiver.judge, trace)
                else:
                    add_judged(memory, receiver.judge, trace)
            except TraceError as reason:
                logger.debug("Run %s was not captured: %s", run.id, reason)
            except StoreError as reason:
                logger.warning("Run %s could not be captured: %s", run.id, reason)


def _add_resumed(memory: LogMemory, judge: Judge | None, trace: Trace) -> None:
    """Store a resumed run, which holds what was said before, in the place of its first half.

    The half was logged as abandoned when the run was put away. It is found by its conversation.
    """
    half_id, half = None, None
    if thread := trace.metadata.get("thread_id"):
        left = memory.store.ledger.having({"thread_id": thread, "abandoned": True}, limit=_HALVES)
        said = scope_of(trace.metadata)
        mine = (one for one in left.items() if may_be_one_run(scope_of(one[1].metadata), said))
        half_id, half = next(mine, (None, None))
    if half is None or half_id is None or half.task != trace.task:
        add_judged(memory, judge, trace)
        return
    earlier = half.metadata.get("earlier_runs")
    runs = [*(earlier if isinstance(earlier, list) else ()), half.id]
    joined = trace.model_copy(
        update={
            "started_at": half.started_at,
            "helped_by": tuple(dict.fromkeys((*half.helped_by, *trace.helped_by))),
            "metadata": {**trace.metadata, "earlier_runs": runs},
        }
    )
    if add_judged(memory, judge, joined) != half_id:
        memory.delete(half_id)

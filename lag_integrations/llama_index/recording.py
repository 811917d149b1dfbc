"""Where the traces of runs go that are over, and on which thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import SimpleQueue

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.judging import add_judged
from lag_integrations.llama_index.runs import Run
from lag_integrations.quiet import quiet

logger = logging.getLogger(__name__)


class Recorder:
    """Records runs at once, or on a thread where that must not be."""

    def __init__(self) -> None:
        self._over: deque[Run] = deque()
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """A run begins: the thread has to be there when it ends, since then it may be too late."""
        if self._thread is None or not self._thread.is_alive():  # in a fork it is not
            self._thread = threading.Thread(target=self._work, name="lag-capture", daemon=True)
            self._thread.start()

    def add(self, run: Run) -> None:
        """A run is over; it is recorded when `settle` is called."""
        self._over.append(run)

    def settle(self) -> None:
        """Record the runs that are over."""
        while self._over:
            try:
                run = self._over.popleft()
            except IndexError:
                return
            self._record(run)

    def settle_later(self) -> None:
        """Let the thread record them: a collector is at work, in the midst of anything.

        As of the store's own work. A SimpleQueue may be told even then.
        """
        self._wanted.put(None)

    def settle_after(self, error: BaseException | None) -> None:
        """Record them; later, if a stream or coroutine is being closed, maybe by the collector."""
        if isinstance(error, GeneratorExit):
            self.settle_later()
        else:
            self.settle()

    def _work(self) -> None:
        while True:
            self._wanted.get()
            self.settle()

    @quiet
    def _record(self, run: Run) -> None:
        if not run.said_something:
            return
        trace = run.trace()
        for memory, judge in run.memories.items():
            try:
                add_judged(memory, None if run.abandoned else judge, trace)
            except TraceError as reason:
                logger.debug("Run %s was not captured: %s", run.id, reason)
            except StoreError as reason:
                logger.warning("Run %s could not be captured: %s", run.id, reason)

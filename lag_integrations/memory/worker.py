"""The thread that works off what is pending, and makes adders wait when it falls behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakMethod

from lag_integrations.errors import BusyError, LAGError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_MAX_WAIT = 1.0
"""Seconds that an adder waits at most for the worker to catch up. Its trace is safe by then."""
_TICK = 30.0
_RETRY = 5.0
"""Seconds after which the worker looks for work unasked, and tries again what did not work."""
_RECOUNT = 0.25
"""Seconds between two counts of what is pending: counting is work, too."""


class Worker:
    """Calls a step function whenever there may be work. The work itself is in the store.

    Nothing here keeps the memory alive: when nobody else does, the thread ends.

    Args:
        step: Does a little; returns False if there is nothing left.
        settle: Called after the last step.
        pending: Returns the number of steps left.
        max_pending: Steps that may be left before adders wait.
        at_end: Called by the thread of a memory that nobody closed, at its end.
    """

    def __init__(
        self,
        step: WeakMethod[Callable[[], bool]],
        settle: WeakMethod[Callable[[], None]],
        pending: WeakMethod[Callable[[], int]],
        max_pending: int,
        at_end: Callable[[], None],
    ) -> None:
        self._step = step
        self._settle = settle
        self._pending = pending
        self._max_pending = max_pending
        self._at_end = at_end
        self._backlog = 0
        self._caught_up = threading.Condition()
        self._counted_at = 0.0
        self._wake = threading.Event()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = self._abandoned = False

    def notify(self, added: int = 0) -> None:
        """Wake the thread; wait a little if much was added and there is too much work."""
        with self._start_lock:
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="lag-memory", daemon=True)
                self._thread.start()
        with self._caught_up:
            self._backlog += added
        self._wake.set()
        if added:
            with self._caught_up:
                self._caught_up.wait_for(
                    lambda: self._backlog <= self._max_pending or self._stopped, timeout=_MAX_WAIT
                )

    @property
    def is_stopped(self) -> bool:
        """Whether the thread has ended, or is about to."""
        return self._stopped

    def stop(self) -> None:
        """Finish the step at hand."""
        with self._start_lock:
            self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def abandon(self) -> None:
        """Let the thread end, without waiting for it: the memory is gone, unclosed."""
        self._abandoned = self._stopped = True
        self._wake.set()

    def _run(self) -> None:
        pause = _TICK
        while not self._stopped:
            self._wake.wait(pause)
            self._wake.clear()
            try:
                while self._call(self._step):
                    self._recount()
                self._call(self._settle)
                pause = _TICK
            except BusyError as error:
                logger.info("Some work is left for later: %s", error)
                pause = _RETRY
            except LAGError as error:
                logger.warning("Logs could not be embedded or encoded for now: %s", error)
                pause = _RETRY
            except Exception as error:
                # The type only: messages of others may repeat a text.
                logger.warning(
                    "Logs could not be embedded or encoded for now (%s); it is tried again.",
                    type(error).__name__,
                )
                logger.debug("The memory's worker failed.", exc_info=True)
                pause = _RETRY
            self._note(0)
        if self._abandoned:
            self._at_end()

    def _call(self, method: WeakMethod[Callable[[], _T]]) -> _T | None:
        called = None if self._stopped else method()
        return None if called is None else called()

    def _recount(self) -> None:
        if self._backlog > self._max_pending and time.monotonic() - self._counted_at > _RECOUNT:
            self._note(self._call(self._pending) or 0)
            self._counted_at = time.monotonic()

    def _note(self, backlog: int) -> None:
        with self._caught_up:
            self._backlog = backlog
            self._caught_up.notify_all()

"""The one thread on which a model computes."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch

from lag_integrations.kv.forward import Unread

Result = TypeVar("Result")


@dataclass(eq=False)
class _Background:
    """Work in parts that answers go before.

    Attributes:
        parts: The work: it yields what is to be read next.
        error: What went wrong with that.
        patient_until: Until when it waits for answers, in monotonic seconds.
        future: Where its result goes.
        cancelled: Nobody waits for it any more.
    """

    parts: Generator[Unread, None, Any]
    patient_until: float
    future: Future[Any] = field(default_factory=Future)
    cancelled: bool = False
    error: Exception | None = None


class InferenceLoop:
    """Runs what a model computes, on one thread, which lives as long as there is something to do.

    First come calls, then passes of the answers in progress, which background work may share. The
    thread ends when nothing is left: who drops a model need not close it, and a process that
    forks has no thread of it that the child would miss.

    Args:
        step: Computes one pass of all answers that can go on, and of what else it is given; tells
            whether there was such an answer, and what went wrong with the rest.
        forget: Drops all answers, in a process that was forked from the one that writes them.
    """

    def __init__(
        self,
        step: Callable[[Unread | None], tuple[bool, Exception | None]],
        forget: Callable[[], None],
    ) -> None:
        self._step = step
        self._forget = forget
        self._begin_anew()
        _loops.add(self)

    def _begin_anew(self) -> None:
        # Streams are closed by the garbage collector, too: on any thread, also one that holds this.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._starting = False
        self._woken = False
        self._answering = False
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._background: deque[_Background] = deque()

    def wake(self) -> None:
        """Have the loop look for work."""
        with self._lock:
            self._woken = True
            if self._thread is not None or self._starting:
                return
            self._starting = True
        # Without the lock: a thread that starts may collect garbage, and want it.
        try:
            # Not a daemon: one that is in a pass when the interpreter ends would abort it.
            self._thread = threading.Thread(target=self._run, name="lag-inference")
            self._thread.start()
        except BaseException:
            with self._lock:
                self._thread, self._starting = None, False
            raise

    def call(self, compute: Callable[[], Result]) -> Result:
        """Compute something on the thread, before the next pass, and wait for it.

        Raises:
            BaseException: What it raises.
        """
        if threading.current_thread() is self._thread:
            return compute()
        future: Future[Result] = Future()
        self._calls.append((compute, future))
        self.wake()
        return future.result()

    def in_parts(self, parts: Generator[Unread, None, Result], patience: float = 0.0) -> Result:
        """Do work beside answers, and wait for it.

        Args:
            parts: The work. It yields what is to be read, and goes on when that was.
            patience: Most seconds that it waits for answers to end, before it takes turns with
                them.

        Raises:
            BaseException: What it raises.
        """
        work = _Background(parts, time.monotonic() + patience)
        with self._lock:
            self._background.append(work)
        self.wake()
        try:
            return cast("Result", work.future.result())
        except BaseException:
            work.cancelled = True
            raise

    def _run(self) -> None:
        with self._lock:
            self._starting = False
        try:
            with torch.no_grad():
                while self._goes_on():
                    pass
        except BaseException as error:
            with self._lock:
                self._thread = None  # the next call begins with another one
                waiting = [future for _, future in self._calls]
                waiting += [work.future for work in self._background]
                self._calls.clear()
                self._background.clear()
            for future in waiting:  # else they would wait for ever
                future.set_exception(error)
            raise

    def _goes_on(self) -> bool:
        """Do what is due; return False, and forget the thread, if nothing is left."""
        with self._lock:
            self._woken = False
        busy = self._round()
        with self._lock:
            if busy or self._woken:
                return True
            self._thread = None
            return False

    def _round(self) -> bool:
        """Do what is due; return whether something may be left."""
        while self._calls:
            compute, future = self._calls.popleft()
            _settle(future, compute)
        # Who waits with the least patience goes first: recall before what nobody waits for.
        with self._lock:
            work = min(self._background, key=lambda one: one.patient_until, default=None)
        extra = None if work is None else self._next_part(work)
        self._answering, error = self._step(extra)
        if work is not None and extra is not None:
            work.error = error
        return self._answering or bool(self._background)

    def _next_part(self, work: _Background) -> Unread | None:
        """Return what background work has read next; None if it waits, or is over."""
        if work.cancelled:
            work.parts.close()
        elif self._answering and time.monotonic() < work.patient_until:
            return None
        else:
            try:
                return next(work.parts) if work.error is None else work.parts.throw(work.error)
            except StopIteration as end:
                work.future.set_result(end.value)
            except BaseException as error:
                work.future.set_exception(error)
        with self._lock:
            self._background.remove(work)
        return None

    def after_fork(self) -> None:
        """Begin anew in a forked process, which has nothing of the thread and its work."""
        self._begin_anew()
        self._forget()


def _settle(future: Future[Any], compute: Callable[[], Any]) -> None:
    try:
        future.set_result(compute())
    except BaseException as error:
        future.set_exception(error)


_loops: WeakSet[InferenceLoop] = WeakSet()


def _after_fork() -> None:
    for loop in list(_loops):
        loop.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Judges of runs, on a thread of their own: a judge that asks a model takes seconds."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, get_args
from weakref import WeakKeyDictionary

from lag_integrations.errors import StoreError
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)

Judge = Callable[[Trace], "bool | Outcome | None"]
"""Says whether a run solved its task; None if it cannot tell."""

_IDLE = 5.0
"""Seconds after which the thread ends, if there is nothing to judge."""

_uncaptured: ContextVar[bool] = ContextVar("lag_uncaptured", default=False)


@contextmanager
def uncaptured() -> Iterator[None]:
    """Nothing that begins in here is captured."""
    token = _uncaptured.set(True)
    try:
        yield
    finally:
        _uncaptured.reset(token)


def is_uncaptured() -> bool:
    """Whether what begins now is not to be captured."""
    return _uncaptured.get()


class Judges:
    """Judges logs one after the other, in the background."""

    def __init__(self) -> None:
        self._cases: queue.Queue[tuple[LogMemory, Judge, Trace, str]] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, memory: LogMemory, judge: Judge, trace: Trace, log_id: str) -> None:
        """Judge a log when its turn comes."""
        with self._lock:
            self._cases.put((memory, judge, trace, log_id))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lag-judge", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait until everything is judged."""
        self._cases.join()

    def _run(self) -> None:
        with uncaptured():
            while True:
                try:
                    case = self._cases.get(timeout=_IDLE)
                except queue.Empty:
                    with self._lock:
                        if self._cases.empty():
                            self._thread = None
                            return
                    continue
                try:
                    _judge(*case)
                finally:
                    del case  # it holds a memory
                    self._cases.task_done()


_judges: WeakKeyDictionary[LogMemory, Judges] = WeakKeyDictionary()
_lock = threading.Lock()


def judges_of(memory: LogMemory) -> Judges:
    """Those of a memory, whichever framework's runs they judge."""
    with _lock:
        return _judges.setdefault(memory, Judges())


def add_judged(memory: LogMemory, judge: Judge | None, trace: Trace) -> str:
    """Record a trace; what a judge may make of it is unknown until he does.

    A run that failed, or did not come to its end, is not put to him.

    Returns:
        The log's id.

    Raises:
        TraceError: Nothing was said in it.
        StoreError: It could not be recorded.
    """
    if judge is None or trace.outcome in ("failure", "incomplete"):
        return memory.add_own([trace], judged=False)[0]
    unknown = trace.model_copy(update={"outcome": "unknown"})
    (log_id,) = memory.add_own([unknown], judged=False)
    judges_of(memory).put(memory, judge, unknown, log_id)
    return log_id


def _judge(memory: LogMemory, judge: Judge, trace: Trace, log_id: str) -> None:
    try:
        outcome = _outcome(judge(trace))
    except Exception as error:
        # The type only: a message may repeat a text.
        logger.warning(
            "The judge of log %s failed (%s); its outcome stays unknown.",
            log_id,
            type(error).__name__,
        )
        logger.debug("The judge failed.", exc_info=True)
        return
    if outcome == "unknown":
        return
    try:
        memory.judge(log_id, outcome)
    except StoreError as error:
        logger.warning("Log %s was judged, but that could not be recorded. %s", log_id, error)


def _outcome(said: object) -> Outcome:
    if said is None:
        return "unknown"
    if isinstance(said, bool):
        return "success" if said else "failure"
    for outcome in get_args(Outcome):
        if said == outcome:
            return outcome  # type: ignore[no-any-return]
    raise TypeError("a judge gives True, False, None, or an outcome")

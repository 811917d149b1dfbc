"""Judges of runs: the queue that calls them in the background, and the judge that asks a model."""

from __future__ import annotations

import logging
import queue
import re
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

Judge = Callable[[Trace], bool | Outcome | None]
"""Says whether a run solved its task; returns None if it cannot tell."""

_IDLE = 5.0
"""Seconds without work after which the thread ends."""

_PROMPT = (
    "Does the answer solve the task? Reply with one word: yes or no.\n\n"
    "Task:\n{task}\n\nAnswer:\n{answer}"
)
_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)

_uncaptured: ContextVar[bool] = ContextVar("lag_uncaptured", default=False)


@contextmanager
def uncaptured() -> Iterator[None]:
    """Keep runs that begin in this block from being captured."""
    token = _uncaptured.set(True)
    try:
        yield
    finally:
        _uncaptured.reset(token)


def is_uncaptured() -> bool:
    """Return whether runs that begin now are not captured."""
    return _uncaptured.get()


class YesNoJudge:
    """Ask a model whether a run solved its task; the base of each framework's `LLMJudge`.

    Args:
        ask: Returns the model's reply to a prompt.
        prompt: The prompt, with ``{task}`` and ``{answer}`` in it.

    Raises:
        ValueError: The prompt lacks ``{task}`` or ``{answer}``.
    """

    def __init__(self, ask: Callable[[str], str], prompt: str | None = None) -> None:
        prompt = _PROMPT if prompt is None else prompt
        for place in ("{task}", "{answer}"):
            if place not in prompt:
                raise ValueError(f"The judge's prompt has no {place}; say where it shall stand.")
        self._ask = ask
        self._prompt = prompt

    def __call__(self, trace: Trace) -> bool | None:
        """Return True for yes, False for no, and None for any other reply."""
        texts = {"{task}": trace.task, "{answer}": trace.last_response}
        # Both at once: a task may hold the word "{answer}".
        prompt = re.sub(r"\{task\}|\{answer\}", lambda place: texts[place[0]], self._prompt)
        with uncaptured():
            reply = self._ask(prompt)
        word = _WORD.search(_THOUGHT.sub("", reply))
        return None if word is None else word[0].lower() == "yes"


class JudgeQueue:
    """Judge logs one after the other on a background thread: asking a model takes seconds."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[LogMemory, Judge, Trace, str]] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, memory: LogMemory, judge: Judge, trace: Trace, log_id: str) -> None:
        """Queue a log, and start the thread if none runs."""
        with self._lock:
            self._jobs.put((memory, judge, trace, log_id))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lag-judge", daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Wait until everything is judged."""
        self._jobs.join()

    def _run(self) -> None:
        with uncaptured():
            while True:
                try:
                    job = self._jobs.get(timeout=_IDLE)
                except queue.Empty:
                    with self._lock:
                        if self._jobs.empty():
                            self._thread = None
                            return
                    continue
                try:
                    _judge(*job)
                finally:
                    del job  # it holds a memory
                    self._jobs.task_done()


_queues: WeakKeyDictionary[LogMemory, JudgeQueue] = WeakKeyDictionary()
_lock = threading.Lock()


def judges_of(memory: LogMemory) -> JudgeQueue:
    """Return the queue of a memory, which the captures of all frameworks share."""
    with _lock:
        return _queues.setdefault(memory, JudgeQueue())


def add_judged(memory: LogMemory, judge: Judge | None, trace: Trace) -> str:
    """Record a trace and queue it for its judge; until then its outcome is ``unknown``.

    Runs that failed or are incomplete are not judged.

    Returns:
        The log's id.

    Raises:
        TraceError: The trace holds nothing to reuse.
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
        outcome = _to_outcome(judge(trace))
    except BaseException as error:  # a cancelled judge must not end the thread of all others
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


def _to_outcome(verdict: object) -> Outcome:
    if verdict is None:
        return "unknown"
    if isinstance(verdict, bool):
        return "success" if verdict else "failure"
    for outcome in get_args(Outcome):
        if verdict == outcome:
            return outcome  # type: ignore[no-any-return]
    raise TypeError("a judge returns True, False, None, or an outcome")

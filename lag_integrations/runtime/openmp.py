"""The threads that share one thread's computing (OpenMP).

Each thread that computes gets a team of its own, which stays. From the second team on there are
more threads than processors, and GNU's OpenMP lets all of them sleep after every operation instead
of waiting a moment for the next: forward passes took 1.5 times as long from the first thing on that
a memory's worker had computed, on whatever thread they were. So teams are let go after use.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

_SOFT = 1
"""``omp_pause_soft`` of OpenMP 5."""


def let_go() -> None:
    """Let go of this thread's team; the next operation makes another, in a tenth of a ms."""
    if "torch" in sys.modules and (pause := _pause()) is not None:
        pause(_SOFT)


def let_go_between_tokens() -> None:
    """Let go while an answer is written, but on the main thread: others may take turns."""
    if threading.current_thread() is not threading.main_thread():
        let_go()


@contextmanager
def computing() -> Iterator[None]:
    """Let go of the team in the end."""
    try:
        yield
    finally:
        let_go()


@cache
def _pause() -> Callable[[int], int] | None:
    """Find OpenMP's function where torch has loaded it for everybody to use, as on Linux."""
    if sys.platform != "linux":
        return None
    found: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    return found


# A fork has its parent's team, but not its threads: to use it, or to let it go, would wait forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=let_go)

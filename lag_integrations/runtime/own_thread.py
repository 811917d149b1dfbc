"""Computing on a thread that ends with it.

Each thread that computes has OpenMP make a team of threads for it, which lasts as long as it does.
A process that is forked later has the thread, but not the team, and would wait for it forever; and
on a CPU the second team has all of them sleep after each operation, instead of waiting a moment
for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(compute: Callable[[], Result]) -> Result:
    """Compute something on a thread of its own, and wait for it.

    Raises:
        BaseException: What it raises.
    """
    future: Future[Result] = Future()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(compute))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="lag-compute")
    thread.start()
    thread.join()
    return future.result()

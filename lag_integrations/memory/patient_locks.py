"""Locks that are waited for in vain at most once a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lag_integrations.errors import BusyError
from lag_integrations.store.locks import Locks

TWICE_AFTER, ALL_TWICE_AFTER = 10.0, 60.0
"""Seconds after which one log, or all, are embedded or encoded although others seem to be at it:
they may be stopped. Work that is done twice is done right."""


class PatientLocks:
    """Holds locks that keep processes from doing work twice, or goes on without them.

    Args:
        locks: The locks of the store.
    """

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._not_waited_for: dict[str, float] = {}  # until when, where it was in vain

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a lock, or go on without it after a while."""
        again = time.monotonic() >= self._not_waited_for.get(name, 0.0)
        with ExitStack() as stack:
            try:
                timeout = TWICE_AFTER if again else 0.0
                stack.enter_context(self._locks.hold(name, timeout=timeout))
            except BusyError:
                if again:
                    self._not_waited_for[name] = time.monotonic() + ALL_TWICE_AFTER
            yield

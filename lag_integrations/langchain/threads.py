"""What the capture handlers of one memory share: an application may make one for every request."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakKeyDictionary

from lag_integrations.langchain.runs import Run

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory

logger = logging.getLogger(__name__)

_MAX_HALVES = 1_000
_MAX_THREADS = 1_000
_REMEMBERED = 1_000
"""Runs that ended: two handlers of one run end it one right after the other."""


class Shared:
    """Interrupted runs that wait for their second half, and runs that are logged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._halves: OrderedDict[str, Run] = OrderedDict()
        self._done: OrderedDict[UUID, None] = OrderedDict()
        self._logged: OrderedDict[str, set[str]] = OrderedDict()

    def is_first(self, run_id: UUID) -> bool:
        """Whether no other handler took care of this run already."""
        with self._lock:
            if run_id in self._done:
                return False
            self._done[run_id] = None
            if len(self._done) > _REMEMBERED:
                self._done.popitem(last=False)
            return True

    def keep_half(self, thread: str, run: Run) -> None:
        """A run was interrupted: keep what it has until its thread goes on."""
        with self._lock:
            self._halves[thread] = run
            self._halves.move_to_end(thread)
            if len(self._halves) > _MAX_HALVES:
                _, oldest = self._halves.popitem(last=False)
                logger.debug("Run %s was interrupted and never resumed; it is dropped.", oldest.id)

    def take_half(self, thread: str) -> Run | None:
        """What the thread's interrupted run has."""
        with self._lock:
            return self._halves.pop(thread, None)

    def logged(self, thread: str) -> set[str]:
        """Ids of messages that are in a log of the thread, as far as this process knows."""
        with self._lock:
            return set(self._logged.get(thread, ()))

    def learn_logged(self, thread: str, message_ids: set[str]) -> None:
        """These are in a log of the thread."""
        with self._lock:
            self._logged.setdefault(thread, set()).update(message_ids)
            self._logged.move_to_end(thread)
            if len(self._logged) > _MAX_THREADS:
                self._logged.popitem(last=False)


_shared: WeakKeyDictionary[KVLogMemory, Shared] = WeakKeyDictionary()
_lock = threading.Lock()


def shared_by(memory: KVLogMemory) -> Shared:
    """What all handlers of a memory share."""
    with _lock:
        return _shared.setdefault(memory, Shared())

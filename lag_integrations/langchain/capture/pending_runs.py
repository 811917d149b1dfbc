"""What the capture handlers of one memory share: an application may make one for every request."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakKeyDictionary

from lag_integrations.capture.run_metadata import Metadata, may_be_one_run
from lag_integrations.langchain.capture.run import Run

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)

_MAX_HALVES = 1_000
_REMEMBERED = 1_000
"""Runs that ended: two handlers of one run end it one right after the other."""


class Shared:
    """Interrupted runs that wait for their second half, and runs that are logged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._halves: OrderedDict[tuple[str, str], Run] = OrderedDict()
        self._done: OrderedDict[UUID, None] = OrderedDict()

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
            key = thread, json.dumps(run.metadata, sort_keys=True)
            self._halves[key] = run
            self._halves.move_to_end(key)
            if len(self._halves) > _MAX_HALVES:
                _, oldest = self._halves.popitem(last=False)
                logger.debug("Run %s was interrupted and never resumed; it is dropped.", oldest.id)

    def take_half(self, thread: str, metadata: Metadata) -> Run | None:
        """What the thread's interrupted run has.

        Args:
            thread: The thread; two users may each have one of that name.
            metadata: What is said of the run that goes on: of another user's it says otherwise.
        """
        with self._lock:
            for key, half in reversed(self._halves.items()):
                if key[0] == thread and may_be_one_run(half.metadata, metadata):
                    return self._halves.pop(key)
        return None


_shared: WeakKeyDictionary[LogMemory, Shared] = WeakKeyDictionary()
_lock = threading.Lock()


def shared_by(memory: LogMemory) -> Shared:
    """What all handlers of a memory share."""
    with _lock:
        return _shared.setdefault(memory, Shared())

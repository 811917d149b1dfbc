"""What all capture handlers of a memory share: an application may make one for every request."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakKeyDictionary

from lag_integrations.capture.judges import Judge
from lag_integrations.capture.run_metadata import Metadata, may_be_one_run
from lag_integrations.langchain.capture.run import Run

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)

_MAX_PENDING = 1_000
_MAX_OPEN = 10_000
_MAX_CLAIMED = 1_000
"""Remembered ids: two handlers of one run end it one right after the other."""


class PendingRuns:
    """The interrupted runs of a memory until they are resumed, and which runs are recorded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: OrderedDict[tuple[str, str], Run] = OrderedDict()
        self._claimed: OrderedDict[UUID, None] = OrderedDict()
        self._handlers: OrderedDict[UUID, tuple[Metadata, Judge | None]] = OrderedDict()

    def begin(self, run_id: UUID, metadata: Metadata, judge: Judge | None) -> None:
        """Note what a handler says of a run that begins: one of them records it for all."""
        with self._lock:
            known, first = self._handlers.get(run_id, ({}, None))
            self._handlers[run_id] = ({**known, **metadata}, first or judge)
            if len(self._handlers) > _MAX_OPEN:
                self._handlers.popitem(last=False)

    def end(
        self, run_id: UUID, metadata: Metadata, judge: Judge | None
    ) -> tuple[Metadata, Judge | None]:
        """Return what all handlers of a run say of it: their metadata, and the first judge.

        Args:
            run_id: The run, which is over.
            metadata: What the one that records it says.
            judge: Its judge.
        """
        with self._lock:
            return self._handlers.pop(run_id, (metadata, judge))

    def claim(self, run_id: UUID) -> bool:
        """Return whether the caller is the first handler to record a run."""
        with self._lock:
            if run_id in self._claimed:
                return False
            self._claimed[run_id] = None
            if len(self._claimed) > _MAX_CLAIMED:
                self._claimed.popitem(last=False)
            return True

    def suspend(self, thread: str, run: Run) -> None:
        """Keep an interrupted run until its thread goes on."""
        with self._lock:
            key = thread, json.dumps(run.metadata, sort_keys=True)
            self._pending[key] = run
            self._pending.move_to_end(key)
            if len(self._pending) > _MAX_PENDING:
                _, oldest = self._pending.popitem(last=False)
                logger.debug("Run %s was interrupted and never resumed; it is dropped.", oldest.id)

    def resume(self, thread: str, metadata: Metadata, name: str | None) -> Run | None:
        """Remove and return the interrupted run of a thread, if there is one.

        Args:
            thread: The thread; two users may each have one of that name.
            metadata: Metadata of the run that goes on, which must not contradict that run's.
            name: Only a run of this name: others may have the same thread; None for any.
        """
        with self._lock:
            for key, run in reversed(self._pending.items()):
                is_named = name is None or run.name == name
                if key[0] == thread and is_named and may_be_one_run(run.metadata, metadata):
                    return self._pending.pop(key)
        return None


_by_memory: WeakKeyDictionary[LogMemory, PendingRuns] = WeakKeyDictionary()
_lock = threading.Lock()


def pending_runs_of(memory: LogMemory) -> PendingRuns:
    """Return the pending runs that all handlers of a memory share."""
    with _lock:
        return _by_memory.setdefault(memory, PendingRuns())

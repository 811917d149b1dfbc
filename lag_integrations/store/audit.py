"""Audit: verify that derived data agree with the ledger, and repair them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lag_integrations.errors import (
    BusyError,
    FingerprintMismatchError,
    ForkedError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.segment import SegmentKey
from lag_integrations.store.orphans import MIN_AGE
from lag_integrations.store.store import LogStore

logger = logging.getLogger(__name__)

_PROBES = 32
"""Entries that the index is asked for."""
_NEIGHBOURS = 32
"""Results of the index among which an entry has to be."""
_MAX_MISSES = 0.05
"""Part of the probes that the index may miss: it is approximate."""

Kind = Literal[
    "ledger_damaged",
    "trace_damaged",
    "segment_missing",
    "segment_damaged",
    "segment_unreadable",
    "orphan_file",
    "index_unusable",
    "index_differs",
    "removal_pending",
]


@dataclass(frozen=True)
class Problem:
    """A difference from the ledger.

    Attributes:
        kind: What is wrong.
        subject: The log, the file or the part of the store.
        detail: A text for people, without content of traces.
    """

    kind: Kind
    subject: str
    detail: str


class Audit:
    """Checks one namespace of a store, and the whole store for orphan files.

    Args:
        store: The store, open.
        progress: Called with the number of steps done, and of all.
        min_age: Seconds after which a file that the ledger does not name is an orphan; before, a
            write may be going on in another process.
    """

    def __init__(
        self,
        store: LogStore,
        progress: Callable[[int, int], None] | None = None,
        *,
        min_age: float = MIN_AGE,
    ) -> None:
        self._store = store
        self._min_age = min_age
        self._progress = progress or (lambda done, total: None)
        self._keys: dict[str, SegmentKey] = {}

    def verify(self) -> list[Problem]:
        """Return all problems. The index of a read-only store is not checked."""
        return list(self._problems())

    def repair(self) -> list[Problem]:
        """Repair what can be repaired; return what was wrong.

        Damaged segments are put aside, and encoded again from their traces. Segments that cannot be
        read now stay as they are: the storage is at fault. So do damaged traces and a damaged
        ledger, which have to be restored from a backup or an export.

        Raises:
            StoreError: The store can only be read.
        """
        self._store.database.require_writable()
        problems = self.verify()
        store = self._store
        rebuild = False
        for problem in problems:
            if problem.kind in ("segment_missing", "segment_damaged"):
                store.discard(self._keys[problem.subject], problem.subject)
            elif problem.kind == "orphan_file":
                store.segment_files.remove(problem.subject)
            elif problem.kind in ("index_unusable", "index_differs"):
                rebuild = True
        store.retry_removals()
        if rebuild:
            store.vectors.rebuild()
        return problems

    def _problems(self) -> Iterator[Problem]:
        store = self._store
        for detail in store.database.damage():
            yield Problem("ledger_damaged", "ledger", detail)
        for removal in store.deletion_queue.next(1):
            yield Problem(
                "removal_pending",
                removal.log_id or removal.file or "",
                "is not gone everywhere yet",
            )
        yield from self._check_traces()
        yield from self._check_segments()
        yield from self._check_orphans()
        yield from self._check_index()

    def _check_traces(self) -> Iterator[Problem]:
        for key in self._store.ledger.damaged():
            yield Problem("trace_damaged", key, "the trace does not fit its hash")

    def _check_segments(self) -> Iterator[Problem]:
        stored = list(self._store.segments.all_files())
        for done, (key, file, _) in enumerate(stored, 1):
            self._keys[file] = key
            if found := self._check_segment(key, file):
                kind, detail = found
                yield Problem(kind, file, f"of log {key.log_id}: {detail}")
            self._progress(done, len(stored))

    def _check_segment(self, key: SegmentKey, file: str) -> tuple[Kind, str] | None:
        if not self._store.segment_files.is_name(file):
            return "segment_missing", "this is no name of a file of ours"
        try:
            self._store.read(key, file)
        except FileNotFoundError as error:
            return "segment_missing", str(error)
        except (SegmentCorruptedError, FingerprintMismatchError) as error:
            return "segment_damaged", str(error)
        except (OSError, StoreError) as error:  # the storage's or the installation's fault
            return "segment_unreadable", f"for now; {error}"
        return None

    def _check_orphans(self) -> Iterator[Problem]:
        for name in self._store.orphans.find(min_age=self._min_age):
            yield Problem("orphan_file", name, "belongs to no log")

    def _check_index(self) -> Iterator[Problem]:
        store = self._store
        if store.read_only:
            logger.warning("The store can only be read, so that its index was not looked at.")
            return
        with store.locks.hold(f"merge-{store.namespace}"):  # neither side changes meanwhile
            try:
                identity = store.index.identity()
                held = store.index.entries()
                merged, vectors = store.embeddings.vectors(inside=identity)
                missing, extra = set(merged) - held, held - set(merged)
                if missing or extra:
                    detail = f"{len(missing)} entries are missing in it, {len(extra)} are unknown"
                    yield Problem("index_differs", "index", detail)
                    return
                probes = np.linspace(0, len(merged) - 1, min(_PROBES, len(merged)), dtype=int)
                lost = 0
                for place in probes:
                    _, found = store.index.search(vectors[place], _NEIGHBOURS)
                    lost += not any(key == merged[place] or score > 0.999 for key, score in found)
                if lost > len(probes) * _MAX_MISSES:
                    detail = f"it finds only {len(probes) - lost} of {len(probes)} of its entries"
                    yield Problem("index_differs", "index", detail)
            except (BusyError, ForkedError):
                raise  # which says nothing of the index
            except StoreError as error:
                yield Problem("index_unusable", "index", str(error))

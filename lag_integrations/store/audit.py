"""Verify that what is derived agrees with the ledger, and repair it where it does not."""

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
_NEAR = 32
_MISSES = 0.05
"""Entries that the index is asked for, among how many they must be, and the part that may not: it
is approximate."""

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
    """Something that is not as the ledger says.

    Attributes:
        kind: What is wrong.
        subject: The log, file or thing that it is about.
        detail: For people; no content of traces.
    """

    kind: Kind
    subject: str
    detail: str


class Audit:
    """Checks one namespace of a store; orphan files are looked for in the whole store.

    Args:
        store: The store, open.
        progress: Called with the number of steps done, and of all.
        min_age: Seconds after which a file that the ledger does not know is an orphan; before,
            it may belong to a write that is going on in another process.
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
        """Everything that is wrong; an empty list if nothing is.

        The index of a store that can only be read is not used, and not looked at.
        """
        return list(self._problems())

    def repair(self) -> list[Problem]:
        """Make right what can be made right; gives what was wrong.

        Damaged segments go to quarantine, and are made again from their traces. Segments that
        cannot be read now are left as they are: that is no fault of theirs. So are damaged traces,
        and a damaged ledger, which have to come from a backup or an export.

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
        yield from self._traces()
        yield from self._segments()
        yield from self._orphans()
        yield from self._index()

    def _traces(self) -> Iterator[Problem]:
        for key in self._store.ledger.damaged():
            yield Problem("trace_damaged", key, "the trace does not fit its hash")

    def _segments(self) -> Iterator[Problem]:
        stored = list(self._store.segments.all_files())
        for done, (key, file, size) in enumerate(stored, 1):
            self._keys[file] = key
            if found := self._wrong_with(key, file, size):
                kind, detail = found
                yield Problem(kind, file, f"of log {key.log_id}: {detail}")
            self._progress(done, len(stored))

    def _wrong_with(self, key: SegmentKey, file: str, size: int) -> tuple[Kind, str] | None:
        if not self._store.segment_files.is_name(file):
            return "segment_missing", "this is no name of a file of ours"
        try:
            data = self._store.segment_files.get(file)
            self._store.decode(data, key)
        except FileNotFoundError as error:
            return "segment_missing", str(error)
        except (SegmentCorruptedError, FingerprintMismatchError) as error:
            return "segment_damaged", str(error)
        except (OSError, StoreError) as error:  # the storage's or the installation's fault
            return "segment_unreadable", f"for now; {error}"
        if len(data) != size:
            return "segment_damaged", f"{len(data)} bytes instead of {size}"
        return None

    def _orphans(self) -> Iterator[Problem]:
        for name in self._store.orphans.find(min_age=self._min_age):
            yield Problem("orphan_file", name, "belongs to no log")

    def _index(self) -> Iterator[Problem]:
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
                    _, found = store.index.search(vectors[place], _NEAR)
                    lost += not any(key == merged[place] or score > 0.999 for key, score in found)
                if lost > len(probes) * _MISSES:
                    detail = f"it finds only {len(probes) - lost} of {len(probes)} of its entries"
                    yield Problem("index_differs", "index", detail)
            except (BusyError, ForkedError):
                raise  # which says nothing of the index
            except StoreError as error:
                yield Problem("index_unusable", "index", str(error))

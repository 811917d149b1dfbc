"""Brings what is derived (embeddings, segments, index) into step with the ledger."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lag_integrations.engine.token_selection import Selection, WholeTrace
from lag_integrations.errors import BusyError
from lag_integrations.memory.embedding_indexer import EmbeddingIndexer
from lag_integrations.memory.patient_locks import PatientLocks
from lag_integrations.memory.segment_indexer import SegmentIndexer
from lag_integrations.store.budget import Budget
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.store import LogStore
from lag_integrations.store.vector_search import MERGE_AT
from lag_integrations.traces.trace import Outcome

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

_ENFORCE_EVERY = 64
_ENFORCE_SECONDS = 10.0
_OVERSHOOT = 0.004
"""Steps, seconds, or part of the byte budget written, after which it is looked at again."""
_SWEEP_SECONDS = 3_600.0
"""Seconds between two looks for files that a crash left behind."""
_INDEX_BUSY = 30.0
"""Seconds for which the worker leaves an index alone that was in use for long."""


class Indexer:
    """Does the derived work of one namespace, a small step at a time.

    Several processes may do so for one store: locks keep them from doing work twice, and what a
    crash interrupted is simply still to do.

    Args:
        store: The store.
        embedder: Makes the embeddings.
        selection: Which tokens of a trace become its segment; what the model's calibration says by
            default.
        codec: How segments are stored.
        budget: What the namespace may grow to.
        record_uses: Records which logs were recalled; called before any are evicted.

    Attributes:
        embeddings: Embeds logs and queries.
        segments: Loads and encodes segments.
        whole_traces: The same of whole traces, for steps that the selection does not keep.
    """

    def __init__(
        self,
        store: LogStore,
        embedder: Embedder,
        *,
        selection: Selection | None,
        codec: str,
        budget: Budget,
        record_uses: Callable[[], None],
    ) -> None:
        locks = PatientLocks(store.locks)
        self.embeddings = EmbeddingIndexer(store, embedder, locks)
        self.segments = SegmentIndexer(store, selection, codec, locks)
        self.whole_traces = SegmentIndexer(store, WholeTrace(), codec, locks, on_demand=True)
        self._store = store
        self._budget = budget
        self._record_uses = record_uses
        self._steps = 0
        self._enforced_at = self._swept_at = float("-inf")
        self._index_from = 0.0
        self._lock = threading.RLock()

    def run_once(
        self, engines: Sequence[Engine], outcomes: Sequence[Outcome], *, full_scan: bool = False
    ) -> bool:
        """Do a little of what is to do.

        Args:
            engines: The models that encode.
            outcomes: Logs with these outcomes are encoded.
            full_scan: Look for old logs without a segment, too, not only for new ones.

        Returns:
            False if there is nothing that others are not doing.

        Raises:
            BusyError: Others held something for long, and there is nothing else to do.
            LAGError: Something does not work. The rest was done all the same.
        """
        merge = partial(self._store.vectors.merge, MERGE_AT)
        stages: list[Callable[[], bool]] = [
            self._enforce_if_due,
            partial(self._on_index, self._store.sweep, full_scan),
            partial(self.embeddings.embed_some, wait=full_scan),
            partial(self._on_index, merge, full_scan),
            *(partial(self.whole_traces.encode_requested, engine) for engine in engines),
            *(partial(self._encode, engine, outcomes, full_scan) for engine in engines),
        ]
        failure: Exception | None = None
        with self._lock:
            for stage in stages:
                try:
                    if stage():
                        return True
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return False

    def _encode(self, engine: Engine, outcomes: Sequence[Outcome], full_scan: bool) -> bool:
        done = self.segments.encode_some(engine, outcomes, full_scan)
        self._steps += done
        return done > 0

    def _on_index(self, stage: Callable[[], bool], full_scan: bool) -> bool:
        """Do a stage that needs the index; not soon again if that was in use for long."""
        if not full_scan and time.monotonic() < self._index_from:
            return False
        try:
            return stage()
        except BusyError:
            self._index_from = time.monotonic() + _INDEX_BUSY
            raise

    def embed_some(self) -> bool:
        """Embed some logs; return False if others are at all that are left, or none is.

        Raises:
            StoreError: The store or the embedder fails, or the embedder is not the store's.
        """
        with self._lock:
            return self.embeddings.embed_some(wait=True)

    def adopt_embedder(self) -> None:
        """Take this embedder for the store's from now on: every namespace is embedded again."""
        with self._lock:
            self.embeddings.adopt_embedder()

    def maintain(self, *, full_scan: bool = False) -> None:
        """Do what is to do now and then: keep the budget, let go of what others deleted.

        Args:
            full_scan: Keep the budget now, not only if it was not looked at lately; and wait for
                others who use the index.

        Raises:
            BusyError: Others held something for long.
            StoreError: The store fails.
        """
        with self._lock:
            if full_scan or time.monotonic() - self._enforced_at > _ENFORCE_SECONDS:
                self._enforce()
            if full_scan:
                self._store.retry_removals()
            else:
                self._store.reset_failed_removals()
                while self._on_index(self._store.sweep, full_scan):
                    pass
            if time.monotonic() - self._swept_at > _SWEEP_SECONDS:
                self._store.remove_orphans()
                self._swept_at = time.monotonic()
            self._store.segment_cache.keep_only(self._store.segments.live_files)

    def count_pending(self, engines: Iterable[Engine], outcomes: Sequence[Outcome]) -> int:
        """Return the steps that are left: one for each log to embed, one for each to encode."""
        missing = sum(self.segments.count_missing(engine, outcomes) for engine in engines)
        return self._store.embeddings.count_missing() + missing

    def _enforce(self) -> None:
        self._steps = self.segments.written = 0
        self._enforced_at = time.monotonic()
        if self._budget == Budget():
            return
        self._record_uses()  # what was recalled a moment ago shall not go
        pruned = self._store.evictor.enforce(self._budget)
        if pruned.logs or pruned.segments:
            logger.info("Evicted %d logs, %d segments.", pruned.logs, pruned.segments)

    def _enforce_if_due(self) -> bool:
        """Keep the budget while there is much to do; never a step of its own."""
        self._steps += 1
        allowed = self._budget.max_bytes
        written = self.segments.written
        if self._steps >= _ENFORCE_EVERY or (allowed and written > allowed * _OVERSHOOT):
            self._enforce()
        return False

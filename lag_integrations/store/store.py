"""The log store of one namespace: ledger, segments, index and hot tier, kept in step."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from lag_integrations.errors import FingerprintMismatchError, SegmentCorruptedError, StoreError
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.blobs import Blobs
from lag_integrations.store.budget import Evictor
from lag_integrations.store.chroma import Server, SharedFolder
from lag_integrations.store.database import Database
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.embeddings import EmbeddingTable
from lag_integrations.store.facts import Facts
from lag_integrations.store.failures import Failures
from lag_integrations.store.filters import Where
from lag_integrations.store.hot import HotTier
from lag_integrations.store.index import ChromaAccess, Index
from lag_integrations.store.ledger import Ledger, checked_namespace
from lag_integrations.store.removals import Removals
from lag_integrations.store.segments import SegmentTable
from lag_integrations.trace import Outcome

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

logger = logging.getLogger(__name__)

MERGE_AT = 256
"""Embeddings that wait in the ledger before they are merged into Chroma. They are searched there,
exactly, so nothing waits to be found; other processes open Chroma again after each merge."""
_MERGE_STEP = 512
_SCAN = 4_000
"""Fitting logs up to which a filtered search compares them all, when the index gave too few."""


class LogStore:
    """Everything stored of one namespace.

    The ledger is the truth. A log is found from the moment its embedding is in the ledger: recall
    joins the Chroma index with the embeddings that are not merged into it yet. Any number of
    threads and processes may use a folder at once.

    Args:
        path: The store's folder; made if it does not exist.
        namespace: The tenant.
        ledger: SQLAlchemy URL of a PostgreSQL database; a file in the folder by default.
        segments: Folder or fsspec URL of the segments; in the folder by default.
        index: URL of a Chroma server, or a Chroma client; embedded in the folder by default.
        ttl: Seconds after which logs are no longer recalled.
        hot_bytes: Most bytes of segments to keep in memory.

    Raises:
        StoreError: The namespace is not a valid name, or the store cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        namespace: str,
        *,
        ledger: str | None = None,
        segments: str | None = None,
        index: str | ClientAPI | None = None,
        ttl: float | None = None,
        hot_bytes: int = 0,
    ) -> None:
        self.namespace = checked_namespace(namespace)
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used as a folder: {error}") from error
        self.blobs = Blobs(segments or str(self.path / "segments"))
        self.database = Database(ledger, self.path)
        self.locks = self.database.locks
        self.ledger = Ledger(self.database, self.namespace, ttl)
        self.failures = Failures(self.database, self.ledger)
        self.embeddings = EmbeddingTable(self.database, self.ledger, self.failures)
        self.segments = SegmentTable(self.database, self.ledger)
        self.removals = Removals(self.database, self.namespace)
        self.facts = Facts(self.database)
        self.evictor = Evictor(self.database, self.ledger)
        store_id = self.facts.first_setting("store_id", uuid4().hex[:12])
        self.index = Index(self._chroma(index), store_id, self.namespace)
        self.hot = HotTier(hot_bytes)
        self._merging = threading.Lock()

    def close(self) -> None:
        """Release everything."""
        self.index.close()
        self.database.close()
        self.hot.clear()

    # Recall

    def search(
        self,
        vector: Vectors,
        *,
        k: int,
        floor: float,
        outcomes: Sequence[Outcome],
        where: Where | None = None,
    ) -> list[tuple[str, float]]:
        """The k nearest logs that may be recalled: ids and cosine similarities, best first.

        Raises:
            StoreError: The filter is malformed, or the store fails.
        """
        allowed = self.ledger.recallable(outcomes, where)
        # In this order: what is merged in between is then seen twice, not missed.
        near = _scores(*self.embeddings.vectors(allowed, merged=False), vector)
        merged = self.embeddings.count(merged=True, limit=1)
        wanted = (4 if where is None else 32) * k + 16
        while merged:
            found = self._search_index(vector, wanted)
            if found is None:  # the index was lost: compare with every embedding
                near = _scores(*self.embeddings.vectors(allowed), vector)
                break
            good = [(key, score) for key, score in found if score >= floor]
            kept = self.ledger.keep_if([key for key, _ in good], allowed)
            if len(kept) >= k or len(good) < len(found) or len(found) < wanted:
                near = {**{key: score for key, score in good if key in kept}, **near}
                break
            if self.ledger.count(allowed, limit=_SCAN + 1) <= _SCAN:
                near = _scores(*self.embeddings.vectors(allowed), vector)
                break
            wanted *= 8
        best = sorted(near.items(), key=lambda item: (-item[1], item[0]))
        return [(key, score) for key, score in best[:k] if score >= floor]

    def _search_index(self, vector: Vectors, n: int) -> list[tuple[str, float]] | None:
        try:
            identity, found = self.index.search(vector, n)
        except StoreError as error:
            logger.warning("%s It is made again.", error)
            self._make_index_again()
            return None
        return found if self.embeddings.expect_index(identity) else None

    # Derived data

    def merge(self, at_least: int = 1) -> bool:
        """Merge embeddings into the index, if so many wait; gives whether there is more to do."""
        with self._merging:
            if self.embeddings.count(merged=False, limit=at_least) < at_least:
                return False
            # The lock makes readers of the list and writers of the index one.
            with self.locks.hold("merge"):
                ids, vectors = self.embeddings.vectors(merged=False, limit=_MERGE_STEP)
                if not ids:
                    return False
                try:
                    if self.embeddings.expect_index(self.index.identity()):
                        identity = self.index.add(ids, vectors)
                        if self.embeddings.expect_index(identity):
                            self.embeddings.mark_merged(ids)
                except StoreError as error:
                    logger.warning("%s It is made again.", error)
                    self._make_index_again()
                    raise
            return True

    def rebuild_index(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the index again from the embeddings in the ledger."""
        with self.locks.hold("merge"):
            self._make_index_again()
        total = self.embeddings.count(merged=False)
        while self.merge():
            if progress is not None:
                progress(max(0, total - self.embeddings.count(merged=False)), total)

    def _make_index_again(self) -> None:
        self.index.reset()
        self.embeddings.expect_index(self.index.identity())

    def sweep(self, limit: int = 500) -> bool:
        """Remove files and index entries of what was deleted; gives whether there was any."""
        gone = self.removals.next(limit)
        if not gone:
            return False
        for removal in gone:
            if removal.file is not None:
                self.blobs.remove(removal.file)
        ids = [removal.log_id for removal in gone if removal.log_id is not None]
        self.hot.drop_logs(set(ids))
        with self.locks.hold("merge"):
            if ids:
                self.index.remove(ids)
            self.removals.done(gone)
        return True

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete logs everywhere; gives the ids that existed."""
        deleted = self.ledger.delete(ids)
        self.hot.drop_logs(deleted)
        while self.sweep():
            pass
        return deleted

    def purge(self) -> int:
        """Delete everything of the namespace; gives the number of logs."""
        number = len(self.delete(list(self.ledger.ids())))
        with self.locks.hold("merge"):
            self.index.drop()
        self.database.compact()
        return number

    # Segments

    def load(self, key: SegmentKey, file: str) -> Segment | None:
        """A segment from memory or its file; a damaged one is put aside, and None is given."""
        held = self.hot.get(file)
        if held is not None:
            return held
        try:
            segment = load_segment(self.blobs.get(file), key)
        except (OSError, SegmentCorruptedError, FingerprintMismatchError) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error
            if self.segments.files(key, [key.log_id]).get(key.log_id) != file:
                return None  # evicted or replaced meanwhile
            logger.warning("The segment of log %s cannot be used. %s", key.log_id, reason)
            self.segments.forget(key)
            self.blobs.quarantine(file)
            return None
        self.hot.put(file, key.log_id, segment)
        return segment

    def save(self, key: SegmentKey, segment: Segment) -> tuple[Segment, int]:
        """Store a segment; gives it as it reads back (some codecs lose a little), and its bytes.

        Raises:
            OSError: It cannot be written.
            EncodingError: The codec cannot hold it.
        """
        data = dump_segment(segment, key)
        # Never used twice: what is still being read, or removed, is another file.
        file = (
            f"{key.fingerprint[:16]}/{key.log_id[:2]}/{key.log_id}-{uuid4().hex[:12]}.safetensors"
        )
        self.blobs.put(file, data)
        if self.segments.add(key, file=file, tokens=len(segment), size=len(data)):
            stored = load_segment(data, key)
            self.hot.put(file, key.log_id, stored)
            return stored, len(data)
        self.blobs.remove(file)
        return segment, 0

    def _chroma(self, index: str | ClientAPI | None) -> ChromaAccess:
        write_lock = partial(self.locks.hold, "chroma")
        if index is None:
            return SharedFolder.at(self.path / "index", self.path / "locks" / "index.lock")
        if isinstance(index, str):
            return Server.of_url(index, write_lock)
        return Server(lambda: index, write_lock)


def _scores(ids: Sequence[str], vectors: Vectors, vector: Vectors) -> dict[str, float]:
    if not len(ids):
        return {}
    scores: Any = np.asarray(vectors) @ vector
    return dict(zip(ids, scores.tolist(), strict=True))

"""The log store of one namespace: ledger, segments, index and hot tier, kept in step."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from sqlalchemy import ColumnElement

from lag_integrations.errors import (
    EmbedderMismatchError,
    FingerprintMismatchError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.blobs import Blobs
from lag_integrations.store.budget import Evictor
from lag_integrations.store.chroma import Server, SharedFolder
from lag_integrations.store.database import Database
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.embeddings import EmbeddingTable, Entry
from lag_integrations.store.facts import Facts
from lag_integrations.store.failures import Failures
from lag_integrations.store.filters import Where
from lag_integrations.store.hot import HotTier
from lag_integrations.store.index import ChromaAccess, Index
from lag_integrations.store.ledger import Ledger, checked_namespace
from lag_integrations.store.removals import Removal, Removals
from lag_integrations.store.segments import SegmentTable
from lag_integrations.store.verdicts import Verdicts
from lag_integrations.teams import computing
from lag_integrations.trace import Outcome

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

logger = logging.getLogger(__name__)

MERGE_AT = 256
"""Embeddings that wait in the ledger before they are merged into Chroma. They are searched there,
exactly, so nothing waits to be found; other processes open Chroma again after each merge."""
_MERGE_STEP = 512
_QUARANTINE = "quarantine"
_KEYS, _KEYS_FILTERED = 8, 64
"""Search keys that the index is asked for, for each log that is wanted: a log has several."""
_SCAN = 4_000
"""Fitting logs up to which a filtered search compares them all, when the index gave too few."""


@dataclass(frozen=True)
class Found:
    """A log that a search found.

    Attributes:
        id: Its id.
        score: Cosine similarity of the query and the nearest of its search keys.
        key: The number of that key.
    """

    id: str
    score: float
    key: int


Staged = Callable[[Segment], Segment]
"""Brings a segment into the memory where it is to be held."""


def _as_it_is(segment: Segment) -> Segment:
    return segment


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
        try:
            self._open_parts(index, ttl, hot_bytes)
        except BaseException:
            self.database.close()
            raise

    def _open_parts(self, index: str | ClientAPI | None, ttl: float | None, hot_bytes: int) -> None:
        self.locks = self.database.locks
        self.ledger = Ledger(self.database, self.namespace, ttl)
        self.verdicts = Verdicts(self.database, self.ledger)
        self.failures = Failures(self.database, self.ledger)
        self.embeddings = EmbeddingTable(self.database, self.ledger, self.failures)
        self.segments = SegmentTable(self.database, self.ledger)
        self.removals = Removals(self.database, self.namespace)
        self.facts = Facts(self.database)
        self.evictor = Evictor(self.database, self.ledger)
        # Others may keep theirs in the same bucket, or on the same server.
        self.id = self.facts.first_setting("store_id", uuid4().hex[:12])
        self.index = Index(self._chroma(index), self.id, self.namespace, self.facts.generation)
        self.hot = HotTier(hot_bytes)
        self._identity = ""  # of the index, as last seen
        self._index_failed = False
        self._stuck: dict[int, str] = {}  # removals that do not work

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
    ) -> list[Found]:
        """Return the k nearest logs that may be recalled, best first.

        A log is as near as the nearest of its search keys.

        Raises:
            StoreError: The filter is malformed, or the store fails.
        """
        allowed = self.ledger.recallable(outcomes, where)
        while True:
            identity = self._identity or self._current_index()
            # In this order: what is merged in between is then seen twice, not missed.
            near = _scores(*self.embeddings.vectors(allowed, outside=identity), vector)
            if self.embeddings.count(inside=identity, limit=1):
                found = self._search_index(vector, k, floor, allowed, filtered=where is not None)
                if found is None:  # it does not work, or gave too little: compare with everything
                    near = _scores(*self.embeddings.vectors(allowed), vector)
                else:
                    near = {**found, **near}
            if self._identity == identity or not self._identity:
                break  # else it was made again by another process meanwhile
        return [found for found in _by_log(near)[:k] if found.score >= floor]

    def _search_index(
        self,
        vector: Vectors,
        k: int,
        floor: float,
        allowed: ColumnElement[bool],
        *,
        filtered: bool,
    ) -> dict[Entry, float] | None:
        """The nearest of the index that are allowed; None if it cannot tell."""
        wanted = (_KEYS_FILTERED if filtered else _KEYS) * k + 16
        while True:
            try:
                before = self._identity
                self._identity, found = self.index.search(vector, wanted)
                if self._identity != before:
                    return {}  # the caller begins anew
                if not found:
                    raise StoreError("The Chroma index finds nothing, although it should.")
            except StoreError as error:
                self._note_failure(error)
                return None
            good = [(entry, score) for entry, score in found if score >= floor]
            ids = list({log_id for (log_id, _), _ in good})
            kept = self.ledger.keep_if(ids, allowed)
            if len(kept) >= k or len(good) < len(found) or len(found) < wanted:
                return {entry: score for entry, score in good if entry[0] in kept}
            if self.ledger.count(allowed, limit=_SCAN + 1) <= _SCAN:
                return None
            wanted *= 8

    def _current_index(self) -> str:
        try:
            self._identity = self.index.identity()
        except StoreError as error:
            self._note_failure(error)
            return "none"
        return self._identity

    def _note_failure(self, error: StoreError) -> None:
        if not self._index_failed:
            logger.warning("%s Until then, all embeddings are compared.", error)
        self._index_failed = True
        self._identity = ""

    # Derived data

    def merge(self, at_least: int = 1) -> bool:
        """Merge embeddings into the index, if so many wait; gives whether there is more to do.

        Raises:
            StoreError: The index does not work, not even made anew.
        """
        if self._index_failed:
            at_least = 0  # see whether it works again
        elif self.embeddings.count(outside=self._identity, limit=at_least) < at_least:
            return False
        with self._hold("merge"):
            try:
                self._identity = self.index.identity()
                if self._index_failed:
                    self._probe_index()
                return self._merge_some(at_least)
            except StoreError as error:
                self._note_failure(error)
                self.index.reset()
                self._identity = self.index.identity()
                return self._merge_some(at_least)

    def _probe_index(self) -> None:
        """See whether an index that failed finds again what it holds."""
        entries, vectors = self.embeddings.vectors(inside=self._identity, limit=1)
        if entries and not self.index.search(vectors[0], 1)[1]:
            raise StoreError("The Chroma index finds nothing, although it should.")

    def _merge_some(self, at_least: int) -> bool:
        entries, vectors = self.embeddings.vectors(outside=self._identity, limit=_MERGE_STEP)
        if entries and len(entries) >= at_least:
            if not self.embeddings.count(inside=self._identity, limit=1):
                self.index.drop_older()
            self.embeddings.mark_indexed(entries, self.index.add(entries, vectors))
        self._index_failed = False
        return bool(entries)

    def rebuild_index(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Make the index again from the embeddings in the ledger."""
        with self._hold("merge"):
            self.index.reset()
            self._identity = self.index.identity()
        total = self.embeddings.count(outside=self._identity)
        while self.merge():
            if progress is not None:
                left = self.embeddings.count(outside=self._identity)
                progress(max(0, total - left), total)

    def sweep(self, limit: int = 500) -> bool:
        """Remove files and index entries of what was deleted; gives whether any is gone."""
        gone = self.removals.next(limit, but=list(self._stuck))
        if not gone:
            return False
        for removal in gone:
            try:
                self._remove(removal)
            except OSError as error:
                self._stuck[removal.id] = f"{removal.file}: {error}"
                logger.warning("A segment file cannot be removed yet: %s", error)
        gone = [removal for removal in gone if removal.id not in self._stuck]
        ids = [removal.log_id for removal in gone if removal.log_id is not None]
        self.hot.drop_logs(set(ids))
        with self._hold("merge"):
            if ids:
                self.index.remove(ids)
            self.removals.done(gone)
        return True

    def retry_removals(self) -> None:
        """Sweep everything, what did not work the last time included."""
        self._stuck.clear()
        while self.sweep():
            pass

    def _remove(self, removal: Removal) -> None:
        if removal.file is not None:
            self.blobs.remove(removal.file)
        if removal.log_id is not None:
            folder = f"{self.id}/{_QUARANTINE}/{removal.log_id}"
            for name in list(self.blobs.names(folder)):
                self.blobs.remove(name)

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete logs everywhere; gives the ids that existed.

        Raises:
            StoreError: They are deleted, but a file or an index entry cannot be removed yet.
        """
        deleted = self.ledger.delete(ids)
        self.hot.drop_logs(deleted)
        self.retry_removals()
        if not self.database.compact():
            logger.warning(
                "Others read the ledger's journal; deleted rows leave it a little later."
            )
        if self._stuck:
            raise StoreError(
                f"The logs are deleted, but files of theirs cannot be removed yet: "
                f"{'; '.join(list(self._stuck.values())[:3])}. It is tried again."
            )
        return deleted

    def purge(self) -> int:
        """Delete everything of the namespace; gives the number of logs."""
        number = len(self.delete(list(self.ledger.ids())))
        with self._hold("merge"):
            self.index.drop()
        self._identity = ""
        for backup in self.path.glob("backup-*.sqlite"):
            logger.warning("%s, made before a migration, still has what was purged.", backup)
        return number

    def _hold(self, name: str) -> AbstractContextManager[bool]:
        return self.locks.hold(f"{name}-{self.namespace}")

    # Segments

    def load(self, key: SegmentKey, file: str, staged: Staged = _as_it_is) -> Segment | None:
        """A segment from memory or its file; a damaged one is put aside, and None is given.

        Args:
            key: The segment.
            file: Its file.
            staged: Brings it into the memory where it is to be held.
        """
        stamp = self.blobs.stamp(file)
        held = self.hot.get(file, stamp)
        if held is not None:
            return held
        try:
            with computing():
                segment = staged(load_segment(self.blobs.get(file), key))
        except (FileNotFoundError, SegmentCorruptedError, FingerprintMismatchError) as error:
            if self.discard(key, file):
                why = f"{file} is missing." if isinstance(error, OSError) else error
                logger.warning("The segment of log %s cannot be used. %s", key.log_id, why)
            return None
        except OSError as error:  # the storage's fault, not the file's
            logger.warning("The segment of log %s cannot be read now: %s", key.log_id, error)
            return None
        self.hot.put(file, key.log_id, segment, stamp)
        if not self.segments.live_files([file]):  # deleted while it was read
            self.hot.drop_logs({key.log_id})
        return segment

    def discard(self, key: SegmentKey, file: str) -> bool:
        """Put a damaged file aside, and have its segment made again; False if it was already."""
        if not self.segments.forget(key, file):
            return False
        self.blobs.move(file, f"{self.id}/{_QUARANTINE}/{key.log_id}/{posixpath.basename(file)}")
        return True

    def save(
        self, key: SegmentKey, segment: Segment, staged: Staged = _as_it_is
    ) -> tuple[Segment, int]:
        """Store a segment; gives it as it reads back (some codecs lose a little), and its bytes.

        Raises:
            OSError: It cannot be written.
            EncodingError: The codec cannot hold it.
        """
        with computing():
            data = dump_segment(segment, key)
        # Never used twice: what is still being read, or removed, is another file.
        name = f"{key.log_id}-{uuid4().hex[:12]}.safetensors"
        file = f"{self.id}/{key.fingerprint[:16]}/{key.log_id[:2]}/{name}"
        self.blobs.put(file, data)
        if self.segments.add(key, file=file, tokens=len(segment), size=len(data)):
            with computing():
                stored = staged(load_segment(data, key))
            self.hot.put(file, key.log_id, stored, self.blobs.stamp(file))
            return stored, len(data)
        self.blobs.remove(file)
        return segment, 0

    def _chroma(self, index: str | ClientAPI | None) -> ChromaAccess:
        write_lock = partial(self.locks.hold, "chroma")
        if index is None:
            return SharedFolder.at(self.path / "index", self.path / "locks" / "index.lock")
        if isinstance(index, str):
            return Server.of_url(index, write_lock)
        return Server(lambda: index, write_lock, owned=False)


def _scores(entries: Sequence[Entry], vectors: Vectors, vector: Vectors) -> dict[Entry, float]:
    if not len(entries):
        return {}
    if vectors.shape[1] != len(vector):
        raise EmbedderMismatchError(
            f"The query has {len(vector)} dimensions, the store's embeddings {vectors.shape[1]}. "
            "Open the store with the embedder that it was built with, or `kvlog reindex` it."
        )
    scores: Any = np.asarray(vectors) @ vector
    return dict(zip(entries, scores.tolist(), strict=True))


def _by_log(near: Mapping[Entry, float]) -> list[Found]:
    """Logs by their best keys, best first."""
    best: dict[str, Found] = {}
    for (log_id, key), score in near.items():
        known = best.get(log_id)
        if known is None or (score, -key) > (known.score, -known.key):
            best[log_id] = Found(log_id, score, key)
    return sorted(best.values(), key=lambda found: (-found.score, found.id))

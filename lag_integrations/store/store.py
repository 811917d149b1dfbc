"""The log store of one namespace: ledger, segments, index and segment cache, kept in step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import ColumnElement

from lag_integrations.errors import StoreError
from lag_integrations.kv.mapped_file import Data
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.store import deletion_receipt as remaining
from lag_integrations.store.budget import Evictor
from lag_integrations.store.chroma.access import ChromaAccess, ReadOnlyChroma
from lag_integrations.store.chroma.folder import ChromaFolder
from lag_integrations.store.chroma.server import ChromaServer
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import DeletionQueue
from lag_integrations.store.deletion_receipt import DeletionReceipt, RemainingData
from lag_integrations.store.deletion_sweeper import Sweeper
from lag_integrations.store.embeddings import EmbeddingTable
from lag_integrations.store.failures import Failures
from lag_integrations.store.index import Index
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.lessons import Lessons
from lag_integrations.store.lexical import LexicalIndex
from lag_integrations.store.locks import retry_while_busy
from lag_integrations.store.log_id import validate_namespace
from lag_integrations.store.migrations import BACKUPS
from lag_integrations.store.orphans import Orphans
from lag_integrations.store.outcomes import Outcomes
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import Query, SearchHit
from lag_integrations.store.segment_cache import SegmentCache
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.store.segment_store import SegmentStore, Staged
from lag_integrations.store.segment_table import SegmentTable
from lag_integrations.store.store_metadata import StoreMetadata
from lag_integrations.store.vector_search import VectorSearch
from lag_integrations.traces.screening import Gate

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_CANDIDATES = 4
"""Candidates of a search for each wanted log."""


class LogStore:
    """Everything stored of one namespace.

    Everything else is derived from the ledger. A log is found as soon as its embedding is in the
    ledger: recall joins the Chroma index with the embeddings that are not merged into it yet. Any
    number of threads and processes may use a folder at once.

    Args:
        path: The store's folder; created if it does not exist.
        namespace: The tenant.
        ledger: SQLAlchemy URL of a PostgreSQL database; a file in the folder by default.
        segments: Folder or fsspec URL of the segments; in the folder by default.
        index: URL of a Chroma server, or a Chroma client; embedded in the folder by default.
        ttl: Seconds after its last capture for which a log may be recalled.
        hot_bytes: Most bytes of segments in memory.
        gate: Redacts and screens every trace before it is recorded.

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
        gate: Gate | None = None,
    ) -> None:
        self.namespace = validate_namespace(namespace)
        self.path = Path(path)
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used as a folder: {error}") from error
        self.database = Database(ledger, self.path)
        try:
            place = segments or str(self.path / "segments")
            self.segment_files = SegmentFiles(place, make=not self.read_only)
            self._open_parts(index, ttl, hot_bytes, gate)
        except BaseException:
            self.database.close()
            raise

    def _open_parts(
        self,
        index: str | ClientAPI | None,
        ttl: float | None,
        hot_bytes: int,
        gate: Gate | None,
    ) -> None:
        self.locks = self.database.locks
        self.ledger = Ledger(self.database, self.namespace, ttl, gate)
        self.outcomes = Outcomes(self.database, self.ledger)
        self.lessons = Lessons(self.database, self.ledger)
        self.lexical = LexicalIndex(self.database, self.ledger)
        self.failures = Failures(self.database, self.ledger)
        self.embeddings = EmbeddingTable(self.database, self.ledger, self.failures)
        self.segments = SegmentTable(self.database, self.ledger)
        self.deletion_queue = DeletionQueue(self.database, self.namespace)
        self.metadata = StoreMetadata(self.database)
        self.evictor = Evictor(self.database, self.ledger)
        # Others may keep theirs in the same bucket, or on the same server.
        self.id = self.metadata.first_setting("store_id", uuid4().hex[:12])
        self.metadata.signing_key()  # is made, so that copies of the store have it, too
        self.orphans = Orphans(self.segment_files, self.id, self.segments, self.deletion_queue)
        self.index = Index(self._chroma(index), self.id, self.namespace, self.metadata.generation)
        self.vectors = VectorSearch(self.ledger, self.embeddings, self.index, self._hold)
        self.segment_cache = SegmentCache(hot_bytes)
        self._segment_store = SegmentStore(
            self.id,
            self.segments,
            self.segment_files,
            self.segment_cache,
            self.orphans,
            read_only=self.read_only,
        )
        self._sweeper = Sweeper(
            self.database,
            self.deletion_queue,
            self.segment_files,
            self.orphans,
            self.vectors,
            self.segment_cache,
            self._hold,
        )

    def _chroma(self, index: str | ClientAPI | None) -> ChromaAccess:
        write_lock = partial(self.locks.hold, "chroma")
        if index is None and self.read_only:
            return ReadOnlyChroma()
        if index is None:
            return ChromaFolder.at(self.path / "index", self.path / "locks" / "index.lock")
        if isinstance(index, str):
            return ChromaServer.of_url(index, write_lock)
        return ChromaServer(lambda: index, write_lock, owned=False)

    @property
    def read_only(self) -> bool:
        """Whether the store can only be read, since its folder cannot be written."""
        return self.database.read_only

    @property
    def cache_salt(self) -> str:
        """The prefix cache's salt for this namespace's prompts and traces, see `Engine.request`."""
        return f"{self.id}:{self.namespace}"

    def close(self) -> None:
        """Release everything."""
        self.index.close()
        self.database.close()
        self.segment_cache.clear()

    def search(
        self,
        query: Query,
        relevance: Relevance,
        *,
        logs: int,
        least_similarity: float,
        allowed: ColumnElement[bool],
        filtered: bool,
    ) -> list[SearchHit]:
        """Return the logs nearest to a query by embedding or rare words, the most relevant first.

        Args:
            query: The query.
            relevance: The relevance model of the embedder.
            logs: Number of wanted logs; more may be returned.
            least_similarity: Least similarity of logs without rare words of the query.
            allowed: The condition under which logs may be recalled.
            filtered: Whether it may leave out most logs.

        Raises:
            StoreError: The store fails.
        """
        near = self.vectors.nearest(
            query.vector,
            logs=_CANDIDATES * logs,
            floor=least_similarity,
            allowed=allowed,
            filtered=filtered,
        )
        rarities = self.lexical.rarities(query.text)
        named = self.lexical.candidates(rarities, _CANDIDATES * logs)
        named = [log_id for log_id in named if log_id not in near]
        kept = list(self.ledger.filter_ids(named, allowed))
        if kept:
            near |= self.vectors.similarities(kept, query.vector)
        shared = self.lexical.shared(rarities, list(near))
        found = []
        for log_id, (score, key) in near.items():
            words = shared.get(log_id, 0.0)
            found.append(SearchHit(log_id, score, key, words, relevance.of(score, words)))
        return sorted(found, key=lambda one: one.rank)

    # Deletion

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete logs; return the ids that existed. `sweep` removes their files and index entries.

        Raises:
            StoreError: The ledger fails; nothing is deleted.
        """
        deleted = self.ledger.delete(ids)
        self.segment_cache.drop_logs(deleted)
        self.database.clear_compiled_statements()
        return deleted

    def drop_deleted(self) -> None:
        """Drop from memory what belongs to logs that other processes deleted."""
        self.segment_cache.keep_only(self.segments.live_files)
        self.database.clear_compiled_statements()

    def sweep(self) -> bool:
        """Remove files and index entries of some deleted logs; see `Sweeper.sweep`."""
        return self._sweeper.sweep()

    def reset_failed_removals(self) -> None:
        """Have `sweep` try removals again that failed before."""
        self._sweeper.reset_failed()

    def retry_removals(self) -> None:
        """Carry out all removals, those that failed before included; see `Sweeper.sweep_all`."""
        self._sweeper.sweep_all()

    def finish_removals(self) -> None:
        """Carry out all removals, or raise an error; see `Sweeper.finish`."""
        self._sweeper.finish()

    def remove_orphans(self) -> None:
        """Remove files that belong to no log; see `Sweeper.remove_orphans`."""
        self._sweeper.remove_orphans()

    def receipt(self, ids: Collection[str], *, swept: bool) -> DeletionReceipt:
        """Return the receipt of a `delete`.

        Args:
            ids: The deleted logs.
            swept: Whether `finish_removals` was called.
        """
        removed = ["ledger", "memory of this process"]
        remains = [remaining.OTHER_PROCESSES]
        if swept:
            removed += ["segment files", "index entries"]
        else:
            remains.append(remaining.UNSWEPT)
        remains.append(remaining.SERVER_VECTORS if self.index.is_served else remaining.VECTORS)
        if not self.database.is_sqlite:
            remains += [remaining.DEAD_ROWS, remaining.WRITE_AHEAD_LOG]
        return self._receipt(ids, removed, remains)

    def _receipt(
        self, ids: Collection[str], removed: Sequence[str], remains: list[RemainingData]
    ) -> DeletionReceipt:
        if self._sweeper.journal_left:
            remains.append(remaining.JOURNAL)
        remains += [remaining.backup(path) for path in self.path.glob(BACKUPS)]
        return DeletionReceipt(tuple(sorted(ids)), tuple(removed), tuple(remains))

    def purge(self) -> DeletionReceipt:
        """Delete everything of the namespace, and rewrite the files of Chroma and PostgreSQL.

        Raises:
            StoreError: As for `finish_removals`; the ledger has none of the logs any more.
        """
        ids = self.delete(list(self.ledger.ids()))
        self.finish_removals()
        retry_while_busy(self.vectors.drop)
        removed = ["ledger", "memory of this process", "segment files", "index"]
        remains = [remaining.OTHER_PROCESSES]
        if not retry_while_busy(self.index.rewrite):
            remains.append(remaining.SERVER_VECTORS)
        if (reason := self.database.rewrite()) is not None:
            remains.append(remaining.unwritten(reason))
        if not self.database.is_sqlite:
            remains.append(remaining.WRITE_AHEAD_LOG)
        return self._receipt(ids, removed, remains)

    def _hold(self, name: str) -> AbstractContextManager[None]:
        return self.locks.hold(f"{name}-{self.namespace}")

    # Segments

    def load(self, key: SegmentKey, file: str, staged: Staged | None = None) -> Segment | None:
        """Return a segment from memory or its file, or None; see `SegmentStore.load`."""
        return self._segment_store.load(key, file, staged)

    def read(self, key: SegmentKey, file: str) -> tuple[Segment, Data]:
        """Return the segment in a file, and the file's content; see `SegmentStore.read`."""
        return self._segment_store.read(key, file)

    def discard(self, key: SegmentKey, file: str) -> bool:
        """Put a damaged segment file aside; see `SegmentStore.discard`."""
        return self._segment_store.discard(key, file)

    def save(
        self, key: SegmentKey, segment: Segment, staged: Staged | None = None
    ) -> tuple[Segment, int]:
        """Store a segment; see `SegmentStore.save`."""
        return self._segment_store.save(key, segment, staged)

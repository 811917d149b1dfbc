"""The log store of one namespace: ledger, segments, index and hot tier, kept in step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from sqlalchemy import ColumnElement

from lag_integrations.errors import (
    FingerprintMismatchError,
    ForkedError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.mapped_file import Data
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.runtime.openmp import computing
from lag_integrations.store import deletion_receipt as receipts
from lag_integrations.store.budget import Evictor
from lag_integrations.store.chroma.access import ChromaAccess, ReadOnlyChroma
from lag_integrations.store.chroma.folder import ChromaFolder
from lag_integrations.store.chroma.server import ChromaServer
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import DeletionQueue, Removal
from lag_integrations.store.deletion_receipt import DeletionReceipt, RemainingData
from lag_integrations.store.embeddings import EmbeddingTable
from lag_integrations.store.failures import Failures
from lag_integrations.store.index import Index
from lag_integrations.store.ledger import Ledger
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
from lag_integrations.store.segments import SegmentTable
from lag_integrations.store.store_metadata import StoreMetadata
from lag_integrations.store.vector_search import VectorSearch
from lag_integrations.traces.screening import Gate

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

logger = logging.getLogger(__name__)

_CANDIDATES = 4
"""Logs that are looked at for each that is wanted."""
_REMOVED_AT_ONCE = 500


Staged = Callable[[Segment], Segment]
"""Brings a segment into the memory where it is to be held; may refuse it by a
`SegmentCorruptedError`."""


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
        gate: What every trace passes before it is recorded.

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
        self.lexical = LexicalIndex(self.database, self.ledger)
        self.failures = Failures(self.database, self.ledger)
        self.embeddings = EmbeddingTable(self.database, self.ledger, self.failures)
        self.segments = SegmentTable(self.database, self.ledger)
        self.deletion_queue = DeletionQueue(self.database, self.namespace)
        self.metadata = StoreMetadata(self.database)
        self.evictor = Evictor(self.database, self.ledger)
        # Others may keep theirs in the same bucket, or on the same server.
        self.id = self.metadata.first_setting("store_id", uuid4().hex[:12])
        self.orphans = Orphans(self.segment_files, self.id, self.segments, self.deletion_queue)
        self._secret = self.metadata.signing_key()
        self.index = Index(self._chroma(index), self.id, self.namespace, self.metadata.generation)
        self.vectors = VectorSearch(self.ledger, self.embeddings, self.index, self._hold)
        self.segment_cache = SegmentCache(hot_bytes)
        self._stuck: dict[int, str] = {}  # removals that do not work
        self._uncompacted = False  # the ledger's journal still has something of what was deleted

    def close(self) -> None:
        """Release everything."""
        self.index.close()
        self.database.close()
        self.segment_cache.clear()

    # Recall

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
        """Return the logs nearest to a query, the most relevant first.

        Args:
            query: What is searched by.
            relevance: What similarities mean.
            logs: Logs that are wanted; more may be found.
            least_similarity: Least similarity, unless a log holds the query's rare words.
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

    # Derived data

    def sweep(self) -> bool:
        """Remove files and index entries of some that were deleted; gives whether any is gone.

        Raises:
            BusyError: Others use the index, from which entries have to go.
            StoreError: The index does not work.
        """
        found = [removal for removal in self._due() if self._remove(removal)]
        if not found:
            return False
        self.segment_cache.drop_logs(
            {removal.log_id for removal in found if removal.log_id is not None}
        )
        if any(removal.log_id is not None for removal in found):
            self._compact()
        with self._hold("merge"):
            # Others may have been faster, and SQLite gives the number of a row again.
            mine = set(self._due()).intersection(found)
            self.deletion_queue.done([removal for removal in mine if removal.log_id is None])
            logs = {removal: removal.log_id for removal in mine if removal.log_id is not None}
            try:
                if logs:
                    self.vectors.remove(list(set(logs.values())))
                    self.deletion_queue.done(list(logs))
            except ForkedError as error:  # others will
                self._stuck |= {removal.id: str(error) for removal in logs}
        return True

    def reset_failed_removals(self) -> None:
        """Let `sweep` try what did not work again."""
        self._stuck.clear()
        if self._uncompacted:
            self._compact()

    def retry_removals(self) -> None:
        """Sweep everything, what did not work the last time included.

        Raises:
            BusyError: Others have used the index for a minute.
            StoreError: The index does not work.
        """
        self.reset_failed_removals()
        while retry_while_busy(self.sweep):
            pass

    def remove_orphans(self) -> None:
        """Remove the files of no log, which a crash left behind, if no other process is at it."""
        with self.locks.try_hold(["orphans"]) as held:
            for name in self.orphans.find() if held else ():
                self.segment_files.remove(name)

    def finish_removals(self) -> None:
        """Wait until nothing is left of what was deleted.

        Raises:
            BusyError: As for `retry_removals`.
            StoreError: A file or an index entry cannot be removed yet.
        """
        self.retry_removals()
        if self._uncompacted:
            logger.warning(
                "Others read the ledger's journal; deleted rows leave it a little later."
            )
        if self._stuck:
            raise StoreError(
                f"The logs are deleted, but not everything of theirs can be removed yet: "
                f"{'; '.join(list(self._stuck.values())[:3])}. It is tried again."
            )

    def _due(self) -> list[Removal]:
        return self.deletion_queue.next(_REMOVED_AT_ONCE, excluding=list(self._stuck))

    def _compact(self) -> None:
        self._uncompacted = not self.database.compact()

    def _remove(self, removal: Removal) -> bool:
        """Remove what is in files; gives whether it is gone."""
        try:
            if removal.file is not None and not self.segment_files.is_name(removal.file):
                logger.warning(
                    "A row names %.80r to be removed, which is no file of ours.", removal.file
                )
            elif removal.file is not None:
                self.segment_files.remove(removal.file)
            if removal.log_id is not None:
                aside = self.orphans.aside(removal.log_id)
                for name in [*aside, *self.orphans.of_log(removal.log_id)]:
                    self.segment_files.remove(name)
        except (OSError, StoreError) as error:
            self._stuck[removal.id] = f"{removal.file or removal.log_id}: {error}"
            logger.warning("A segment file cannot be removed yet: %s", error)
            return False
        return True

    @property
    def read_only(self) -> bool:
        """Whether the store can only be read, since its folder cannot be written."""
        return self.database.read_only

    @property
    def cache_salt(self) -> str:
        """What models read this namespace's prompts and traces under, see `Engine.request`."""
        return f"{self.id}:{self.namespace}"

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete logs; gives the ids that existed. What is left elsewhere is `sweep`'s to remove.

        Raises:
            StoreError: The ledger fails; nothing is deleted.
        """
        deleted = self.ledger.delete(ids)
        self.segment_cache.drop_logs(deleted)
        self.database.clear_compiled_statements()
        return deleted

    def drop_deleted(self) -> None:
        """Let go of what is held in memory of logs that others deleted."""
        self.segment_cache.keep_only(self.segments.live_files)
        self.database.clear_compiled_statements()

    def receipt(self, ids: Collection[str], *, swept: bool) -> DeletionReceipt:
        """Return what `delete` did, and what remains.

        Args:
            ids: What it gave.
            swept: Whether `finish_removals` was done.
        """
        removed = ["ledger", "memory of this process"]
        remains = [receipts.OTHERS]
        if swept:
            removed += ["segment files", "index entries"]
        else:
            remains.append(receipts.UNSWEPT)
        remains.append(receipts.SERVED if self.index.is_served else receipts.VECTORS)
        if not self.database.is_sqlite:
            remains += [receipts.ROWS, receipts.WRITE_AHEAD]
        return self._receipt(ids, removed, remains)

    def _receipt(
        self, ids: Collection[str], removed: Sequence[str], remains: list[RemainingData]
    ) -> DeletionReceipt:
        if self._uncompacted:
            remains.append(receipts.JOURNAL)
        remains += [receipts.backup(path) for path in self.path.glob(BACKUPS)]
        return DeletionReceipt(tuple(sorted(ids)), tuple(removed), tuple(remains))

    def purge(self) -> DeletionReceipt:
        """Delete everything of the namespace, and write anew what Chroma and PostgreSQL kept.

        Raises:
            StoreError: As for `finish_removals`; the ledger has none of them any more.
        """
        ids = self.delete(list(self.ledger.ids()))
        self.finish_removals()
        retry_while_busy(self.vectors.drop)
        removed = ["ledger", "memory of this process", "segment files", "index"]
        remains = [receipts.OTHERS]
        if not retry_while_busy(self.index.rewrite):
            remains.append(receipts.SERVED)
        if (reason := self.database.rewrite()) is not None:
            remains.append(receipts.unwritten(reason))
        if not self.database.is_sqlite:
            remains.append(receipts.WRITE_AHEAD)
        return self._receipt(ids, removed, remains)

    def _hold(self, name: str) -> AbstractContextManager[None]:
        return self.locks.hold(f"{name}-{self.namespace}")

    # Segments

    def load(self, key: SegmentKey, file: str, staged: Staged = _as_it_is) -> Segment | None:
        """A segment from memory or its file; a damaged one is put aside, and None is given.

        Args:
            key: The segment.
            file: Its file.
            staged: Brings it into the memory where it is to be held.
        """
        if not self.segment_files.is_name(file):  # somebody else wrote that row
            self.discard(key, file)
            return None
        stamp = self.segment_files.stamp(file)
        held = self.segment_cache.get(file, stamp)
        if held is not None:
            return held
        try:
            with computing():
                segment = staged(self.decode(self.segment_files.get(file), key))
        except (FileNotFoundError, SegmentCorruptedError, FingerprintMismatchError) as error:
            if self.discard(key, file):
                why = f"{file} is missing." if isinstance(error, OSError) else error
                logger.warning("The segment of log %s cannot be used. %s", key.log_id, why)
            return None
        except OSError as error:  # the storage's fault, not the file's
            logger.warning("The segment of log %s cannot be read now: %s", key.log_id, error)
            return None
        self.segment_cache.put(file, key.log_id, segment, stamp)
        if not self.segments.live_files([file]):  # deleted while it was read
            self.segment_cache.drop_logs({key.log_id})
        return segment

    def decode(self, data: Data, key: SegmentKey) -> Segment:
        """Return the segment in the content of a file that this store wrote.

        Raises:
            SegmentCorruptedError: It is damaged, or something else; see `load_segment`.
            FingerprintMismatchError: Another model wrote it.
        """
        try:
            return load_segment(data, key, self._secret)
        except SegmentCorruptedError:
            secret, self._secret = self._secret, self.metadata.signing_key()
            if secret == self._secret:
                raise
            return load_segment(data, key, self._secret)

    def change_key(self) -> None:
        """Take a new secret for the files of all namespaces; what stood under the old one is gone.

        A secret that somebody may know proves nothing, so all segments are made again.
        """
        self.metadata.new_signing_key()
        self.segment_cache.clear()
        self.retry_removals()

    def discard(self, key: SegmentKey, file: str) -> bool:
        """Put a damaged file aside, and have its segment made again; False if it was already."""
        if self.read_only or not self.segments.forget(key, file):
            return self.read_only
        if not self.segment_files.is_name(file):
            logger.warning("The segment of log %s was recorded under no name of ours.", key.log_id)
            return True
        try:
            self.orphans.put_aside(key.log_id, file)
        except (OSError, StoreError) as error:  # it is used no more, wherever it lies
            logger.warning("A segment of log %s cannot be put aside: %s", key.log_id, error)
        return True

    def save(
        self, key: SegmentKey, segment: Segment, staged: Staged | None = None
    ) -> tuple[Segment, int]:
        """Store a segment; gives it as it reads back (some codecs lose a little), and its bytes.

        Args:
            key: The segment.
            segment: What is to be stored.
            staged: Brings it into the memory where it is to be held. Without, it is not held, and
                given as it is: only who made it of its trace knows that it says the same.

        Raises:
            OSError: It cannot be written.
            EncodingError: The codec cannot hold it.
        """
        if self.read_only:
            return segment, 0
        self._secret = self.metadata.signing_key()  # it may have been changed meanwhile
        with computing():
            data = dump_segment(segment, key, self._secret)
        # Never used twice: what is still being read, or removed, is another file.
        name = f"{key.log_id}-{uuid4().hex[:12]}.safetensors"
        file = f"{self.id}/{key.fingerprint[:16]}/{key.log_id[:2]}/{name}"
        self.segment_files.put(file, data)
        if not self.segments.add(key, file=file, tokens=len(segment), size=len(data)):
            self.segment_files.remove(file)
            return segment, 0
        if staged is not None:
            with computing():
                segment = staged(load_segment(data, key, self._secret))
            self.segment_cache.put(file, key.log_id, segment, self.segment_files.stamp(file))
        return segment, len(data)

    def _chroma(self, index: str | ClientAPI | None) -> ChromaAccess:
        write_lock = partial(self.locks.hold, "chroma")
        if index is None and self.read_only:
            return ReadOnlyChroma()
        if index is None:
            return ChromaFolder.at(self.path / "index", self.path / "locks" / "index.lock")
        if isinstance(index, str):
            return ChromaServer.of_url(index, write_lock)
        return ChromaServer(lambda: index, write_lock, owned=False)

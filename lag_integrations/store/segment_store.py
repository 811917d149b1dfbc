"""Loading and saving segments: cache, files and table kept in step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from uuid import uuid4

from lag_integrations.errors import (
    FingerprintMismatchError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.mapped_file import Data, sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.store.orphans import Orphans
from lag_integrations.store.segment_cache import SegmentCache
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.store.segment_table import SegmentTable

logger = logging.getLogger(__name__)

Staged = Callable[[Segment], Segment]
"""Moves a segment to the memory where it is to be held. May refuse it by a
`SegmentCorruptedError`."""


class SegmentStore:
    """Stores the segments of a namespace in files.

    The name of a file, which the table holds, ends with the hash of its content.

    Args:
        store_id: The store's folder among the files.
        table: Which segments exist.
        files: Their files.
        cache: Those used lately, in memory.
        orphans: Takes damaged files.
        read_only: Whether nothing can be written.
    """

    def __init__(
        self,
        store_id: str,
        table: SegmentTable,
        files: SegmentFiles,
        cache: SegmentCache,
        orphans: Orphans,
        *,
        read_only: bool,
    ) -> None:
        self._store_id = store_id
        self._table = table
        self._files = files
        self._cache = cache
        self._orphans = orphans
        self._read_only = read_only

    def load(self, key: SegmentKey, file: str, staged: Staged | None = None) -> Segment | None:
        """Return a segment from memory or its file; None after putting a damaged file aside.

        Args:
            key: The segment.
            file: Its file.
            staged: Moves it to the memory where it is to be held.
        """
        if not self._files.is_name(file):  # somebody else wrote that row
            self.discard(key, file)
            return None
        stamp = self._files.stamp(file)
        held = self._cache.get(file, stamp)
        if held is not None:
            return held
        try:
            segment = in_own_thread(lambda: self._read(key, file, staged))
        except (FileNotFoundError, SegmentCorruptedError, FingerprintMismatchError) as error:
            if self.discard(key, file):
                why = f"{file} is missing." if isinstance(error, OSError) else error
                logger.warning("The segment of log %s cannot be used. %s", key.log_id, why)
            return None
        except OSError as error:  # the storage's fault, not the file's
            logger.warning("The segment of log %s cannot be read now: %s", key.log_id, error)
            return None
        self._cache.put(file, key.log_id, segment, stamp)
        if not self._table.live_files([file]):  # deleted while it was read
            self._cache.drop_logs({key.log_id})
        return segment

    def read(self, key: SegmentKey, file: str) -> tuple[Segment, Data]:
        """Return the segment in a file that this store wrote, and the file's content.

        Raises:
            OSError: The file is missing, is recorded no more, or cannot be read.
            SegmentCorruptedError: It is damaged, or something else; see `load_segment`.
            FingerprintMismatchError: Another model wrote it.
            StoreError: A package that its codec needs is not installed.
        """
        nbytes = self._table.nbytes(key, file)
        if nbytes is None:  # deleted, or replaced by another file, meanwhile
            raise FileNotFoundError(file)
        data = self._files.get(file, nbytes)
        from lag_integrations.kv.segment_file import load_segment  # torch, when it is needed

        return load_segment(data, key, _hash_in(file)), data

    def _read(self, key: SegmentKey, file: str, staged: Staged | None) -> Segment:
        segment, _ = self.read(key, file)
        return segment if staged is None else staged(segment)

    def discard(self, key: SegmentKey, file: str) -> bool:
        """Put a damaged file aside, so that its segment is encoded again.

        Returns:
            False if it was put aside before.
        """
        if self._read_only or not self._table.forget(key, file):
            return self._read_only
        if not self._files.is_name(file):
            logger.warning("The segment of log %s was recorded under no name of ours.", key.log_id)
            return True
        try:
            self._orphans.put_aside(key.log_id, file)
        except (OSError, StoreError) as error:  # it is used no more, wherever it lies
            logger.warning("A segment of log %s cannot be put aside: %s", key.log_id, error)
        return True

    def save(
        self, key: SegmentKey, segment: Segment, staged: Staged | None = None
    ) -> tuple[Segment, int]:
        """Store a segment; return it as it reads back (some codecs are lossy), and its bytes.

        Args:
            key: The segment.
            segment: What is to be stored.
            staged: Moves it to the memory where it is to be held. Without, the segment is not
                held, and is returned as it is: only who encoded its trace knows that it says the
                same.

        Raises:
            OSError: It cannot be written.
            EncodingError: The codec cannot hold it.
        """
        from lag_integrations.kv.segment_file import dump_segment, load_segment

        if self._read_only:
            return segment, 0
        data = in_own_thread(lambda: dump_segment(segment, key))
        sha256 = sha256_hex(data)
        # Never used twice: what is still being read, or removed, is another file.
        name = f"{key.log_id}-{uuid4().hex[:12]}-{sha256}.safetensors"
        file = f"{self._store_id}/{key.fingerprint[:16]}/{key.log_id[:2]}/{name}"
        self._files.put(file, data)
        if not self._table.add(key, file=file, tokens=len(segment), size=len(data)):
            self._files.remove(file)
            return segment, 0
        if staged is not None:
            stage = staged
            segment = in_own_thread(lambda: stage(load_segment(data, key, sha256)))
            self._cache.put(file, key.log_id, segment, self._files.stamp(file))
        return segment, len(data)


def _hash_in(file: str) -> str:
    """Return the hash in a file's name."""
    return file.removesuffix(".safetensors").rpartition("-")[2]

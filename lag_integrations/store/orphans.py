"""Orphans: segment files of no log, which a crash left before they were recorded."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from lag_integrations.store.chunks import chunks
from lag_integrations.store.deletion_queue import DeletionQueue
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.store.segment_table import SegmentTable

MIN_AGE = 600.0
"""Seconds for which a new file may still be recorded by whoever writes it."""
_QUARANTINE = "quarantine"
"""Folder of damaged segment files. It is unrelated to logs in quarantine."""


class Orphans:
    """Finds files of a store, in all of its namespaces, that its ledger does not name.

    Args:
        segment_files: The files.
        store_id: The store's folder among them; no other is looked at.
        segments: Which files are recorded.
        deletion_queue: Which files are to be removed anyway.
    """

    def __init__(
        self,
        segment_files: SegmentFiles,
        store_id: str,
        segments: SegmentTable,
        deletion_queue: DeletionQueue,
    ) -> None:
        self._segment_files = segment_files
        self._store_id = store_id
        self._segments = segments
        self._deletion_queue = deletion_queue
        name = r"[^/]{1,16}/[0-9a-f]{2}/([0-9a-f-]+\.safetensors|\.[^/]+\.part)"
        self._ours = re.compile(f"{re.escape(store_id)}/{name}")

    def find(self, *, min_age: float = MIN_AGE) -> Iterator[str]:
        """Yield the files of no log.

        Args:
            min_age: Least seconds since they were written: another process may record newer ones.
        """
        names = [
            name for name in self._segment_files.names(self._store_id) if self._ours.fullmatch(name)
        ]
        # Asked after the files were listed: a file is recorded after it was written.
        for part in chunks(names):
            known = self._segments.live_files(part) | self._deletion_queue.files(part)
            for name in part:
                if name not in known and self._segment_files.age(name) >= min_age:
                    yield name

    def of_log(self, log_id: str) -> set[str]:
        """Return the unrecorded files of a deleted log, whole or half written."""
        names = [
            name
            for folder in self._segment_files.folders(self._store_id)
            for name in self._segment_files.names(f"{folder}/{log_id[:2]}")
            if posixpath.basename(name).lstrip(".").startswith(f"{log_id}-")
            and self._ours.fullmatch(name)
        ]
        # The log may have been added again; and queued files are removed by themselves.
        return set(names) - self._segments.live_files(names) - self._deletion_queue.files(names)

    def aside(self, log_id: str) -> list[str]:
        """Return the damaged files of a log that were put aside."""
        folder = f"{self._store_id}/{_QUARANTINE}/{log_id}"
        ours = re.compile(re.escape(f"{folder}/{log_id}") + r"-[0-9a-f-]+\.safetensors")
        return [name for name in self._segment_files.names(folder) if ours.fullmatch(name)]

    def put_aside(self, log_id: str, file: str) -> None:
        """Move a damaged file of a log out of the way.

        Raises:
            OSError: It cannot be moved.
            StoreError: It or its new place is reached by a link.
        """
        name = posixpath.basename(file)
        self._segment_files.move(file, f"{self._store_id}/{_QUARANTINE}/{log_id}/{name}")

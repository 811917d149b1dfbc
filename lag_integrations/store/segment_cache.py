"""Cache of the segments that were used lately, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from lag_integrations.kv.segment import Segment
from lag_integrations.store.segment_files import Stamp


class _Held(NamedTuple):
    log_id: str
    segment: Segment
    stamp: Stamp | None


class SegmentCache:
    """LRU cache of segments. Thread safe.

    Segments are immutable, so that many requests may use one at once.

    Args:
        max_bytes: Most bytes of tensors; larger segments are not cached.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, file: str, stamp: Stamp | None = None) -> Segment | None:
        """Return the cached segment of a file; None if there is none, or the file has changed.

        Args:
            file: The file's name. No name is used twice, but somebody may damage a mapped file.
            stamp: The file's current stamp (`SegmentFiles.stamp`).
        """
        with self._lock:
            held = self._held.get(file)
            if held is None or held.stamp != stamp:
                return None
            self._held.move_to_end(file)
            return held.segment

    def put(self, file: str, log_id: str, segment: Segment, stamp: Stamp | None = None) -> None:
        """Cache a segment, and evict others as needed."""
        if segment.nbytes > self.max_bytes:
            return
        with self._lock:
            self._drop([file] if file in self._held else [])
            self._held[file] = _Held(log_id, segment, stamp)
            self.nbytes += segment.nbytes
            while self.nbytes > self.max_bytes:
                self._drop([next(iter(self._held))])

    def drop_logs(self, ids: Collection[str]) -> None:
        """Drop the segments of some logs."""
        with self._lock:
            self._drop([file for file, held in self._held.items() if held.log_id in ids])

    def keep_only(self, live: Callable[[Sequence[str]], Collection[str]]) -> None:
        """Drop segments of files that are not live any more.

        Args:
            live: Returns those of some files that are live.
        """
        with self._lock:
            files = list(self._held)
        alive = set(live(files)) if files else set()
        with self._lock:
            self._drop([file for file in files if file not in alive and file in self._held])

    def clear(self) -> None:
        """Drop all segments."""
        with self._lock:
            self._drop(list(self._held))

    def _drop(self, files: Sequence[str]) -> None:
        for file in files:
            self.nbytes -= self._held.pop(file).segment.nbytes

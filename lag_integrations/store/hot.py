"""The hot tier: segments that were used lately, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from lag_integrations.kv.segment import Segment


class HotTier:
    """Least recently used segments go first, when there are more than so many bytes.

    Shared by threads. Segments are never changed after they were made, so that many requests may
    use one at once.

    Args:
        max_bytes: Most bytes of tensors to hold; a segment larger than that is not held at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._held: OrderedDict[str, tuple[str, Segment]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, file: str) -> Segment | None:
        """The segment of a file, if it is held. File names are never used twice."""
        with self._lock:
            if file not in self._held:
                return None
            self._held.move_to_end(file)
            return self._held[file][1]

    def put(self, file: str, log_id: str, segment: Segment) -> None:
        """Hold a segment, and let go of others as far as needed."""
        if segment.nbytes > self.max_bytes:
            return
        with self._lock:
            self._drop([file] if file in self._held else [])
            self._held[file] = (log_id, segment)
            self.nbytes += segment.nbytes
            while self.nbytes > self.max_bytes:
                self._drop([next(iter(self._held))])

    def drop_logs(self, ids: Collection[str]) -> None:
        """Let go of logs that were deleted."""
        with self._lock:
            self._drop([file for file, (log_id, _) in self._held.items() if log_id in ids])

    def keep_only(self, live: Callable[[Sequence[str]], Collection[str]]) -> None:
        """Let go of files that are not live any more, whoever removed them."""
        with self._lock:
            files = list(self._held)
        alive = set(live(files)) if files else set()
        with self._lock:
            self._drop([file for file in files if file not in alive and file in self._held])

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._drop(list(self._held))

    def _drop(self, files: Sequence[str]) -> None:
        for file in files:
            self.nbytes -= self._held.pop(file)[1].nbytes

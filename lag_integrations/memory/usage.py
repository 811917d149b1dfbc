"""Which logs were recalled, counted in memory and recorded now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection

from lag_integrations.errors import StoreError
from lag_integrations.store.store import LogStore

_RECORD_EVERY = 5.0
"""Seconds between two records."""


class UsageCounter:
    """Counts recalls of logs: recall does not wait for the disk.

    Args:
        store: Where the counts are recorded; not if it can only be read.
    """

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._uses: Counter[str] = Counter()
        self._recorded_at = time.monotonic()

    def add(self, log_ids: Collection[str]) -> bool:
        """Count logs as used; return whether it is time to `record`."""
        if self._store.read_only:
            return False
        with self._lock:
            self._uses.update(log_ids)
            return bool(self._uses) and time.monotonic() - self._recorded_at > _RECORD_EVERY

    def record(self) -> None:
        """Write the counts to the ledger.

        Raises:
            StoreError: They cannot be written; they are kept.
        """
        with self._lock:
            uses, self._uses = self._uses, Counter()
            self._recorded_at = time.monotonic()
        if not uses:
            return
        try:
            self._store.ledger.count_uses(uses)
        except StoreError:
            with self._lock:
                self._uses.update(uses)
            raise

"""Sweeping: the removal of what deleted logs left in files and in the index."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

from lag_integrations.errors import ForkedError, StoreError
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import DeletionQueue, Removal
from lag_integrations.store.locks import retry_while_busy
from lag_integrations.store.orphans import Orphans
from lag_integrations.store.segment_cache import SegmentCache
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.store.vector_search import VectorSearch

logger = logging.getLogger(__name__)

_BATCH = 500


class Sweeper:
    """Carries out the removals that are queued for a namespace.

    Args:
        database: The ledger's database.
        queue: The removals.
        segment_files: The files to remove.
        orphans: Finds files of deleted logs that were never recorded.
        vectors: The index to remove entries from.
        segment_cache: Drops the segments of deleted logs.
        hold: Holds a lock of the namespace, by its name.
    """

    def __init__(
        self,
        database: Database,
        queue: DeletionQueue,
        segment_files: SegmentFiles,
        orphans: Orphans,
        vectors: VectorSearch,
        segment_cache: SegmentCache,
        hold: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._db = database
        self._queue = queue
        self._segment_files = segment_files
        self._orphans = orphans
        self._vectors = vectors
        self._segment_cache = segment_cache
        self._hold = hold
        self._failed: dict[int, str] = {}
        self.journal_left = False
        """Whether the ledger's journal still holds rows of what was deleted."""

    def sweep(self) -> bool:
        """Remove files and index entries of some deleted logs; return whether any was removed.

        Raises:
            BusyError: Others use the index, from which entries have to be removed.
            StoreError: The index does not work.
        """
        found = [removal for removal in self._due() if self._remove_files(removal)]
        if not found:
            return False
        self._segment_cache.drop_logs(
            {removal.log_id for removal in found if removal.log_id is not None}
        )
        if any(removal.log_id is not None for removal in found):
            self._compact()
        with self._hold("merge"):
            # Others may have been faster, and SQLite gives the number of a row again.
            mine = set(self._due()).intersection(found)
            self._queue.done([removal for removal in mine if removal.log_id is None])
            logs = {removal: removal.log_id for removal in mine if removal.log_id is not None}
            try:
                if logs:
                    self._vectors.remove(list(set(logs.values())))
                    self._queue.done(list(logs))
            except ForkedError as error:  # others will
                self._failed |= {removal.id: str(error) for removal in logs}
        return True

    def reset_failed(self) -> None:
        """Have `sweep` try removals again that failed before."""
        self._failed.clear()
        if self.journal_left:
            self._compact()

    def sweep_all(self) -> None:
        """Carry out all removals, those that failed before included.

        Raises:
            BusyError: Others have used the index for a minute.
            StoreError: The index does not work.
        """
        self.reset_failed()
        while retry_while_busy(self.sweep):
            pass

    def finish(self) -> None:
        """Carry out all removals, or say which failed.

        Raises:
            BusyError: As for `sweep_all`.
            StoreError: A file or an index entry cannot be removed yet.
        """
        self.sweep_all()
        if self.journal_left:
            logger.warning(
                "Others read the ledger's journal; deleted rows leave it a little later."
            )
        if self._failed:
            raise StoreError(
                f"The logs are deleted, but not everything of theirs can be removed yet: "
                f"{'; '.join(list(self._failed.values())[:3])}. It is tried again."
            )

    def remove_orphans(self) -> None:
        """Remove files that belong to no log, unless another process does so now."""
        with self._db.locks.try_hold(["orphans"]) as held:
            for name in self._orphans.find() if held else ():
                self._segment_files.remove(name)

    def _due(self) -> list[Removal]:
        return self._queue.next(_BATCH, excluding=list(self._failed))

    def _compact(self) -> None:
        self.journal_left = not self._db.compact()

    def _remove_files(self, removal: Removal) -> bool:
        """Remove the files of a removal; return whether they are gone."""
        try:
            if removal.file is not None and not self._segment_files.is_name(removal.file):
                logger.warning(
                    "A row names %.80r to be removed, which is no file of ours.", removal.file
                )
            elif removal.file is not None:
                self._segment_files.remove(removal.file)
            if removal.log_id is not None:
                aside = self._orphans.aside(removal.log_id)
                for name in [*aside, *self._orphans.of_log(removal.log_id)]:
                    self._segment_files.remove(name)
        except (OSError, StoreError) as error:
            self._failed[removal.id] = f"{removal.file or removal.log_id}: {error}"
            logger.warning("A segment file cannot be removed yet: %s", error)
            return False
        return True

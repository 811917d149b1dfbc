"""Maintenance: deletion, budgets, archives, backups, repair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import overload

from lag_integrations.errors import EncodingError, StoreError
from lag_integrations.memory.base import MemoryBase
from lag_integrations.store.archive import ArchiveResult, export_archive, import_archive
from lag_integrations.store.audit import Audit, Problem
from lag_integrations.store.backup import BackupResult, back_up
from lag_integrations.store.deletion_receipt import DeletionReceipt
from lag_integrations.store.filters import Where
from lag_integrations.store.locks import pause, retry_while_busy

Progress = Callable[[int, int], None]

_TELL_EVERY = 0.2
"""Seconds between two reports of progress."""
_NAMED = 5
"""Failures that an error names; memory.store.failures has all."""


class MaintenanceMixin(MemoryBase):
    """Keeps a store in order."""

    @overload
    def delete(self, log_ids: str | Iterable[str], *, wait: bool = False) -> DeletionReceipt: ...

    @overload
    def delete(self, *, where: Where, wait: bool = False) -> DeletionReceipt: ...

    def delete(
        self,
        log_ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        wait: bool = False,
    ) -> DeletionReceipt:
        """Delete logs: traces, segments, index entries, work, and what is in memory.

        Lessons go with the first of the logs that they were made of.

        When this returns, nobody recalls them any more, and the ledger has nothing of them. Their
        files and index entries are removed by the worker, several logs' at once; by the next who
        opens the store, if this one is closed before.

        Args:
            log_ids: Their ids.
            where: Instead, all logs with such metadata, whatever their outcome (see `recall`):
                ``{"sources": "doc-7"}`` for those of runs that were shown a document.
            wait: Return when files and index entries are gone, too, as `flush` does.

        Returns:
            Which of them there were, with their lessons, and what may remain of them for how long.

        Raises:
            StoreError: Neither or both are given, or the filter is malformed; nothing is deleted.
                Or, with `wait`: they are deleted, but something of theirs cannot be removed yet.
        """
        self._check_open()
        if where is not None and log_ids is None:
            ids = list(self.store.ledger.ids(where))
        elif log_ids is not None and where is None:
            ids = [log_ids] if isinstance(log_ids, str) else list(log_ids)
        else:
            raise StoreError("Say which logs are to be deleted: either their ids, or where=….")
        deleted = self.store.delete(ids)
        self._clear_prefixes()
        if wait:
            self.store.finish_removals()
        elif deleted:
            self._worker.notify()
        return self.store.receipt(deleted, swept=wait)

    def purge(self) -> DeletionReceipt:
        """Delete everything of this namespace, with all files, and write anew what held it.

        The embedded index and a PostgreSQL ledger's tables are written anew, for which others wait.

        Returns:
            Which logs there were, and what may remain of them for how long.

        Raises:
            StoreError: The logs are deleted, but something of theirs cannot be removed yet.
        """
        self._check_open()
        try:
            return self.store.purge()
        finally:
            self._clear_prefixes()

    def prune(self) -> None:
        """Evict now what the budget demands; the worker does so by itself."""
        self._check_open()
        self._indexer.maintain(full_scan=True)

    def export_to(
        self,
        path: str | Path,
        *,
        segments: bool = False,
        overwrite: bool = False,
        key: bytes | None = None,
        progress: Progress | None = None,
    ) -> ArchiveResult:
        """Write this namespace to one portable file; see `store.archive`.

        Args:
            path: The file to write.
            segments: Put the segments in, too; without, they are made again from the traces.
            overwrite: Replace the file if it exists.
            key: Secret to sign it with, at least 32 bytes, which the store that imports it has to
                be given, too; this store's own by default.
            progress: Called with the number of steps done, and of all.

        Raises:
            StoreError: The key is too short, or the file exists already or cannot be written.
        """
        self._check_open()
        self.usage.record()
        return export_archive(
            self.store, path, segments=segments, overwrite=overwrite, key=key, progress=progress
        )

    def import_from(
        self,
        path: str | Path,
        progress: Progress | None = None,
        *,
        key: bytes | None = None,
        segments: bool = True,
    ) -> ArchiveResult:
        """Add what `export_to` wrote, whatever namespace it comes from; doing it again is fine.

        Anybody may have written an archive that neither this store nor the owner of the key signed:
        its segments are left out and made again, and so are some counters; see `store.archive`.

        Args:
            path: The archive.
            progress: Called with the number of steps done, and of all.
            key: Secret that the archive must be signed with.
            segments: Take the segments, if the archive is trusted; else they are made again.

        Raises:
            StoreError: The file is not a whole archive, of a newer version, or not signed with the
                key that was given; nothing was added.
        """
        self._check_open()
        archived = import_archive(self.store, path, progress, key=key, segments=segments)
        self._worker.notify()
        return archived

    def change_key(self) -> None:
        """Take a new secret for the archives of all namespaces, as when it may be known.

        Archives that were signed with the old one count as anybody's.
        """
        self._check_open()
        self.store.metadata.new_signing_key()

    def backup_to(
        self, path: str | Path, *, segments: bool = True, progress: Progress | None = None
    ) -> BackupResult:
        """Copy the whole store, all namespaces, to a new folder, while others may write.

        Everything that was added before is in it. `store.backup.restore` makes a store of it.

        Args:
            path: The new folder.
            segments: Copy the segments, too; without, they are made again from the traces.
            progress: Called with the number of segments done, and of all.

        Raises:
            StoreError: The folder exists already or cannot be written, or the ledger is on a
                server.
        """
        self._check_open()
        self.usage.record()
        return back_up(self.store, path, segments=segments, progress=progress)

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """Return what does not agree with the ledger; an empty list if all is well."""
        self._check_open()
        return Audit(self.store, progress).verify()

    def repair(self, progress: Progress | None = None, *, min_age: float = 600.0) -> list[Problem]:
        """Make right what `verify` finds, as far as it can be, and return what was wrong.

        Args:
            progress: Called with the number of steps done and the number of steps in all.
            min_age: Seconds after which a file of no log is removed: before, it may belong to a
                write that is going on in another process.
        """
        self._check_open()
        problems = Audit(self.store, progress, min_age=min_age).repair()
        self._indexer.segments.rescan()
        self._worker.notify()
        return problems

    def reindex(self, progress: Progress | None = None) -> None:
        """Embed every trace again with this memory's embedder, and make the index anew.

        A store has one embedder: other namespaces are embedded again when they are next used.
        """
        self._check_open()
        self._indexer.adopt_embedder()
        self.store.vectors.rebuild()
        self.flush(progress)

    def flush(self, progress: Progress | None = None) -> None:
        """Wait until all that is to do is done.

        Everything added so far is embedded, indexed and, with a model, encoded; of what was
        deleted, files and index entries are gone.

        Args:
            progress: Called with the number of steps done and the number of steps in all.

        Raises:
            EncodingError: Some logs could not be derived; their traces are safe in the ledger, and
                the next `flush` tries them again. A log that fails again for the same reason is
                not reported twice.
            BusyError: Others have held something for a minute.
            StoreError: The store fails, or the embedder is not the store's.
        """
        self._check_open()
        self.store.failures.clear()
        total = left = self._pending()
        told = 0.0
        while left:
            self._check_open()
            if retry_while_busy(partial(self._run_once, full_scan=True)):
                if progress is not None and time.monotonic() - told > _TELL_EVERY:
                    progress(max(0, total - self._pending()), total)
                    told = time.monotonic()
            else:
                left = self._pending()
                if left:
                    pause()  # another process is at it
        if progress is not None:
            progress(total, total)
        self.store.retry_removals()  # first: what was added again since is then merged again
        while retry_while_busy(self.store.vectors.merge):
            pass
        retry_while_busy(partial(self._maintain, full_scan=True))
        failures = {
            task: reason
            for task, reason in self.store.failures.all().items()
            if self._reported.get(task) != reason
        }
        self._reported.update(failures)
        if failures:
            first = [f"{key}: {reason}" for (key, _), reason in failures.items()][:_NAMED]
            reasons = "; ".join([*first, *(["…"] if len(failures) > _NAMED else [])])
            raise EncodingError(
                f"{len(failures)} logs could not be embedded or encoded (their traces are safe in "
                f"the ledger): {reasons}"
            )

    def embed_pending(self) -> None:
        """Wait until everything added so far is embedded, so that `recall` finds it.

        Raises:
            StoreError: The store or the embedder fails, or the embedder is not the store's.
        """
        self._check_open()
        while self.store.embeddings.count_missing(limit=1):
            if not self._indexer.embed_some():
                pause()  # another process is at it
            self._check_open()

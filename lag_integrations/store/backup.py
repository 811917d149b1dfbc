"""Backups of a whole store, made while others write, and their restoration.

A backup is a folder with ``ledger.sqlite`` and ``segments/``, laid out as in a store. The ledger is
a snapshot of all namespaces, with the store's id and signing key: whoever can read a backup can
read the store. The index is not in it, since it is rebuilt from the ledger.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lag_integrations.errors import LAGError, StoreError
from lag_integrations.store.database import LEDGER_FILE
from lag_integrations.store.file_permissions import create_private_file
from lag_integrations.store.segment_files import SegmentFiles, sync_folder
from lag_integrations.store.store import LogStore

logger = logging.getLogger(__name__)

_SEGMENTS = "segments"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class BackupResult:
    """What a backup or a restoration copied.

    Attributes:
        logs: Number of logs, of all namespaces.
        segments: Number of segment files that were copied.
        missing: Number of those that were not: left out, deleted meanwhile or lost. Their segments
            are encoded again from the traces.
    """

    logs: int
    segments: int
    missing: int


def back_up(
    store: LogStore,
    path: str | Path,
    *,
    segments: bool = True,
    progress: Progress | None = None,
) -> BackupResult:
    """Copy a store to a new folder, as a whole or not at all. Others may write meanwhile.

    Args:
        store: The store, open.
        path: The new folder.
        segments: Whether to copy the segments, too.
        progress: Called with the number of segment files done, and of all.

    Raises:
        StoreError: The ledger is on a server; the folder exists already or cannot be written; or
            the ledger is damaged.
    """
    if not store.database.is_sqlite:
        raise StoreError(
            f"The ledger {store.database} is on a server: back it up with pg_dump, and the folder "
            "of the segments, if you like, as any other."
        )
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists already; give the name of a new folder.")
    with _new_folder(target) as scratch:
        ledger = store.database.sqlite_connection()
        return _copy(ledger, store.segment_files if segments else None, scratch, progress)


def restore(backup: str | Path, path: str | Path, progress: Progress | None = None) -> BackupResult:
    """Copy a backup to a new or empty folder, as a whole or not at all. This makes it a store.

    The store has the id of the one that was backed up: on servers of segments or of the index, it
    takes that one's place.

    Args:
        backup: A backup that `back_up` wrote.
        path: The store's folder.
        progress: Called with the number of segment files done, and of all.

    Raises:
        StoreError: The backup is not one, or is damaged; or the folder is in use or cannot be
            written.
    """
    source, target = Path(backup), Path(path)
    if not (source / LEDGER_FILE).is_file():
        raise StoreError(f"There is no backup at {source}: it has no {LEDGER_FILE}.")
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        raise StoreError(f"{target} is not empty; give a new or empty folder.")
    has_segments = (source / _SEGMENTS).is_dir()
    files = SegmentFiles(str(source / _SEGMENTS)) if has_segments else None
    with _new_folder(target) as scratch:
        return _copy(_open_ledger(source / LEDGER_FILE), files, scratch, progress)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, which gets the target's name when the block ends well."""
    try:
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".", suffix=".part"))
        try:
            yield scratch
            sync_folder(scratch)
            if target.exists():
                target.rmdir()  # which fails if it is not empty
            os.rename(scratch, target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error}") from error


@contextmanager
def _open_ledger(ledger: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{ledger.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        yield connection


def _copy(
    ledger: AbstractContextManager[sqlite3.Connection],
    segment_files: SegmentFiles | None,
    folder: Path,
    progress: Progress | None,
) -> BackupResult:
    """Copy a ledger, and those segment files that it names and that exist."""
    try:
        with ledger as old:
            logs, files = _copy_ledger(old, folder / LEDGER_FILE)
    except sqlite3.Error as error:
        raise StoreError(
            f"The ledger cannot be copied: it is damaged, or no ledger ({error}). Take another "
            "backup, or import an export."
        ) from error
    copies = SegmentFiles(str(folder / _SEGMENTS))
    copied = 0
    for done, (file, nbytes) in enumerate(files if segment_files is not None else (), 1):
        copied += segment_files is not None and _copy_file(segment_files, copies, file, nbytes)
        if progress is not None:
            progress(done, len(files))
    return BackupResult(logs, copied, len(files) - copied)


def _copy_ledger(old: sqlite3.Connection, target: Path) -> tuple[int, list[tuple[str, int]]]:
    """Copy a snapshot of a ledger; return its number of logs, and its segment files with sizes."""
    create_private_file(target)
    with closing(sqlite3.connect(target)) as new:
        old.backup(new)  # in one step: in several, it begins again whenever somebody writes
        new.execute("PRAGMA journal_mode=DELETE")  # one file, which read-only media can hold
        damage = [row[0] for row in new.execute("PRAGMA integrity_check") if row[0] != "ok"]
        if damage:
            raise sqlite3.DatabaseError("; ".join(damage[:3]))
        ((logs,),) = new.execute("SELECT count(*) FROM logs")
        rows = new.execute(
            "SELECT file, bytes FROM segments WHERE typeof(file) = 'text' "
            "AND typeof(bytes) = 'integer' ORDER BY file"
        )
        return logs, list(rows)


def _copy_file(source: SegmentFiles, target: SegmentFiles, file: str, nbytes: int) -> bool:
    """Copy a segment file of a size; return whether it exists."""
    try:
        data = bytes(source.get(file, nbytes))
    except (OSError, ValueError, LAGError) as error:  # gone, or no file of ours
        logger.warning("A segment was left out. %s", error)
        return False
    target.put(file, data)
    return True

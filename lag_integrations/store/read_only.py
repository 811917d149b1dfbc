"""Ledgers in folders that cannot be written, as on read-only mounts and snapshots."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_read_only(ledger: Path) -> bool:
    """Return whether a ledger exists that can be read, but not written."""
    if not ledger.exists():
        return False
    try:
        with tempfile.TemporaryFile(dir=ledger.parent):
            pass
    except OSError as error:
        return error.errno in _REFUSED
    return not os.access(ledger, os.W_OK)


def open_read_only(ledger: Path, folder: Path) -> str:
    """Return an SQLite URI that reads a ledger, or a copy of it.

    SQLite needs a file beside a ledger to read its journal. If it can create none, a ledger without
    a journal is read in place, and one with a journal is copied together with it.

    Args:
        ledger: The file.
        folder: Folder for the copy.
    """
    uri = f"file:{quote(str(ledger))}?mode=ro"
    if _is_readable(uri):
        return uri
    journal = ledger.with_name(f"{ledger.name}-wal")
    if not journal.exists() or not journal.stat().st_size:
        return f"{uri}&immutable=1"
    for file in (ledger, journal):
        shutil.copyfile(file, folder / file.name)
    return f"file:{quote(str(folder / ledger.name))}"


def _is_readable(uri: str) -> bool:
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        return False
    return True

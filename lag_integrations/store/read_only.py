"""Ledgers in folders that cannot be written: read-only mounts, snapshots, somebody else's."""

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
    """Return whether there is a ledger that can be read, but not written."""
    if not ledger.exists():
        return False
    try:
        with tempfile.TemporaryFile(dir=ledger.parent):
            pass
    except OSError as error:
        return error.errno in _REFUSED
    return not os.access(ledger, os.W_OK)


def open_read_only(ledger: Path, folder: Path) -> str:
    """Return the SQLite URI by which a ledger can be read where it is, or a copy of it.

    SQLite needs a file beside a ledger to read its journal. Where it can make none, a ledger
    without a journal is read as it is; one with a journal is copied, and read with it.

    Args:
        ledger: The file.
        folder: Where a copy may be put.
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

"""Files in a store's folder that are not the store's: they are refused, and left as they are."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from lag_integrations.errors import StoreError

_JOURNALS = ("-wal", "-shm", "-journal")
_OURS = {"alembic_version", "logs"}
"""Tables that every ledger has, since its first version."""


def refuse_foreign_ledger(ledger: Path) -> None:
    """Refuse an SQLite file that another program made. It is only read.

    Raises:
        StoreError: It holds other tables than a ledger's, or is, or has beside it, a link.
    """
    for file in (ledger, *(ledger.with_name(ledger.name + end) for end in _JOURNALS)):
        if file.is_symlink():
            raise _foreign(file, "is a link, and what it leads to would be written")
    if not ledger.exists() or not ledger.stat().st_size:
        return
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    try:
        uri = f"file:{quote(str(ledger))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=0)) as connection:
            found = {name for (name,) in connection.execute(tables)}
    except sqlite3.Error:
        return  # damaged, or in use: who opens it says so
    if found and not found >= _OURS:
        raise _foreign(ledger, "holds another program's tables")


def refuse_foreign_lock(file: Path) -> None:
    """Refuse a lock file that would be emptied though it is not a store's: those are empty.

    Raises:
        StoreError: It holds something, is no plain file, or it or its folder is a link.
    """
    if file.parent.is_symlink():
        raise _foreign(file.parent, "is a link")
    try:
        found = file.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise _foreign(file, "is no plain file")
    if found.st_size:
        raise _foreign(file, "is not empty, as a lock file is, and would be emptied")


def _foreign(file: Path, problem: str) -> StoreError:
    return StoreError(
        f"{file} {problem}: it is not this store's, so it was left as it is. Choose another "
        "folder for the store, or move it away."
    )

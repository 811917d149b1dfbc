"""The files of an embedded Chroma database, and the state file beside them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from uuid import UUID

from lag_integrations.errors import StoreError
from lag_integrations.store.chroma.spare_room import blank_spare_room

STATE_FILE = "lag-state"
"""Holds a token of whoever wrote last."""
WRITING = "writing"
"""Content of the state file while somebody writes."""
_SCRATCH = f".{STATE_FILE}"
_DATABASE = "chroma.sqlite3"
_DATABASES = frozenset(_DATABASE + end for end in ("", "-journal", "-wal", "-shm"))


def read_state(folder: Path) -> str:
    """Return the content of the state file; ``""`` if there is none."""
    try:
        return (folder / STATE_FILE).read_text("ascii")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):  # damaged: whoever wrote last may have died
        return WRITING


def write_state(folder: Path, state: str) -> None:
    """Replace the state file. Makes the folder."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    scratch = folder / _SCRATCH
    scratch.write_text(state, "ascii")
    os.replace(scratch, folder / STATE_FILE)


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that this store did not make.

    Raises:
        StoreError: It is a link or a file, holds files but not the store's state file, or a link
            that would be written through.
    """
    if folder.is_symlink():
        problem = "is a link"
    elif not folder.exists():
        return
    elif not folder.is_dir():
        problem = "is not a folder"
    elif (link := _link_within(folder)) is not None:
        problem = f"holds a link, {link.relative_to(folder)}, which would be written through"
    elif _is_plain_file(folder / STATE_FILE):
        return
    elif all(entry.name == _SCRATCH for entry in folder.iterdir()):
        return  # empty, or its maker died before it wrote anything else
    else:
        problem = "holds files that are not this store's"
    raise StoreError(
        f"The memory keeps its index in {folder}, but this {problem}. Nothing was changed. Choose "
        "another folder for the memory, or move this one away."
    )


def has_database(folder: Path) -> bool:
    """Return whether there is a database."""
    return (folder / _DATABASE).exists()


def remove_database(folder: Path) -> None:
    """Remove the database, but neither the state file nor other files beside it."""
    for entry in _entries(folder):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            with suppress(OSError):
                entry.unlink()


def vacuum(folder: Path) -> bool:
    """Rewrite a closed database, and remove the indexes of deleted collections.

    Returns:
        False if the database is of a kind that is not known.
    """
    try:
        with closing(sqlite3.connect(folder / _DATABASE, timeout=1)) as connection:
            live = {row[0] for row in connection.execute("SELECT id FROM segments")}
            connection.execute("VACUUM")
    except sqlite3.Error:
        return False
    for entry in _entries(folder):
        if entry.is_dir() and not entry.is_symlink() and entry.name not in live:
            shutil.rmtree(entry, ignore_errors=True)
    return True


def blank(folder: Path) -> None:
    """Blank what the indexes hold of the memory of whoever wrote them.

    Raises:
        OSError: A file cannot be read or written.
    """
    if folder.is_dir():
        for entry in _entries(folder):
            if entry.is_dir() and not entry.is_symlink():
                blank_spare_room(entry)


def _link_within(folder: Path) -> Path | None:
    """Return a link that stands where this store or Chroma writes, if there is one."""
    for entry in (folder / _SCRATCH, *_entries(folder)):
        if entry.is_symlink():
            return entry
        if entry.is_dir():
            with os.scandir(entry) as files:
                for file in files:
                    if file.is_symlink():
                        return Path(file)
    return None


def _entries(folder: Path) -> Iterator[Path]:
    """Return the entries of the folder that Chroma makes: its database and its indexes."""
    return filter(_is_of_chroma, list(folder.iterdir()))


def _is_of_chroma(entry: Path) -> bool:
    if entry.name in _DATABASES:
        return not entry.is_dir()
    try:
        return str(UUID(entry.name)) == entry.name and entry.is_dir()
    except ValueError:
        return False


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()

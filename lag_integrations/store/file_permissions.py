"""Permissions of files and folders that only this user may read."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_OF_OTHERS = 0o077


def create_private_file(file: Path) -> None:
    """Create an empty file that nobody else can read, unless it exists."""
    with suppress(OSError):  # whoever writes to it will say what is wrong
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))


def remove_others_access(*paths: Path) -> None:
    """Remove other users' permissions from files and folders of this user.

    Files of other users, targets of links and missing files stay as they are.
    """
    if not hasattr(os, "geteuid"):
        return
    for path in paths:
        with suppress(OSError):
            # Not opened: closing an SQLite file would release this process's locks on it.
            found = path.lstat()
            plain = stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
            if plain and found.st_uid == os.geteuid() and found.st_mode & _OF_OTHERS:
                path.chmod(stat.S_IMODE(found.st_mode) & ~_OF_OTHERS)

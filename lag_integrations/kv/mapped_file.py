"""Files as memory: what is in the system's page cache already is not copied."""

from __future__ import annotations

import hashlib
import mmap
import sys

Data = bytes | bytearray | memoryview
"""The content of a file."""

_POPULATE_READ = 22
"""``MADV_POPULATE_READ`` of Linux 5.14 and later."""


def sha256_hex(data: Data) -> str:
    """Return the SHA-256 of a file's content, in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def mapped(path: str, nbytes: int) -> memoryview | None:
    """Map a file into memory that may be written to; the file stays as it is.

    Only for files that nobody changes, on a disk of this machine: to use what was cut off, or
    removed on a network drive, kills the process.

    Args:
        path: The file.
        nbytes: Its size, not 0.

    Returns:
        The content, or None where it cannot be mapped or not all of it can be read: reading the
        file says why.
    """
    if sys.platform != "linux":
        return None
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY)
        # Reads all of it now: a disk's error is told here, instead of killing the process later.
        content.madvise(_POPULATE_READ)
    except (OSError, ValueError):
        return None
    return memoryview(content)

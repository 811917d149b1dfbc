"""Files as memory: what is in the system's page cache already is not copied."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import torch

_POPULATE_READ = 22
"""``MADV_POPULATE_READ`` of Linux 5.14 and later."""


def mapped(path: str, nbytes: int) -> memoryview | None:
    """The content of a file, in memory that may be written to; the file stays as it is.

    Only for files that nobody changes, on a disk of this machine: to use what was cut off, or
    removed on a network drive, kills the process.

    Args:
        path: The file.
        nbytes: Its size, not 0.

    Returns:
        The content, or None where it cannot be mapped or not all of it can be read: reading the
        file says why.
    """
    library = _library()
    if library is None:
        return None
    try:
        content = torch.from_file(path, shared=False, size=nbytes, dtype=torch.uint8)
    except RuntimeError:
        return None
    address, length = ctypes.c_void_p(content.data_ptr()), ctypes.c_size_t(nbytes)
    # Reads all of it now: an error of the disk is told here, instead of killing the process later.
    if library.madvise(address, length, _POPULATE_READ):
        return None
    array: Any = content.numpy()
    return memoryview(array)


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None

"""Memory for what is large: fresh pages cost more than filling them.

The system clears each page before it gives it, and large blocks come straight from the system each
time, whatever the allocator. So they are asked for in huge pages, where there is a choice (Linux,
with ``/sys/kernel/mm/transparent_hugepage/enabled`` at ``madvise``), and used again. Blocks that
wait for that are offered to the system, which takes them when memory is short.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
import torch

Data = bytes | bytearray | memoryview
"""The content of a file."""

_LARGE = 4 * 2**20
"""Bytes from which on it pays."""

_MOST_FREE = 512 * 2**20
"""Bytes that wait at most."""

_MADV_FREE = getattr(mmap, "MADV_FREE", 8)
"""Linux's number; a Python that was built on an old system has no name for it."""

_free: deque[mmap.mmap] = deque()
"""Those that were used last come last. Only what a deque does at once is done with it: blocks
become free wherever the last tensor in them goes, on any thread."""


def buffer(nbytes: int) -> memoryview:
    """Writable memory, still to be filled."""
    if nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(nbytes))
    pages = _waiting(nbytes) or _new(nbytes)
    if pages is None:
        return memoryview(bytearray(nbytes))  # or a MemoryError, as everywhere
    block: Any = np.frombuffer(pages, np.uint8, nbytes)
    weakref.finalize(block, _give_back, pages).atexit = False
    return memoryview(block)


def empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A tensor still to be filled, of the dtype and on the device of another."""
    number = prod(shape)
    if like.device.type != "cpu" or number * like.element_size() < _LARGE:
        return like.new_empty(shape)
    pages = buffer(number * like.element_size())
    return torch.frombuffer(pages, dtype=like.dtype, count=number).view(*shape)


def release() -> None:
    """Give back what waits."""
    _free.clear()


def _waiting(nbytes: int) -> mmap.mmap | None:
    """The block used last of those that are not much too large."""
    for pages in reversed(list(_free)):
        if nbytes <= len(pages) <= nbytes * 5 // 4:
            with suppress(ValueError):  # another thread took it
                _free.remove(pages)
                return pages
    return None


def _new(nbytes: int) -> mmap.mmap | None:
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _give_back(pages: mmap.mmap) -> None:
    """Let a block wait, and the longest waiting ones go."""
    if len(pages) > _MOST_FREE:
        return
    with suppress(OSError):
        pages.madvise(_MADV_FREE)
    _free.append(pages)
    while sum(map(len, list(_free))) > _MOST_FREE:
        with suppress(IndexError):
            _free.popleft()

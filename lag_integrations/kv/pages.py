"""Memory for what is large: fresh pages of 4 KiB cost more than filling them.

Large blocks come straight from the system each time, whatever the allocator. A copy of 90 MB into
such a block took five times as long as into one of huge pages, where there is a choice (Linux, with
``/sys/kernel/mm/transparent_hugepage/enabled`` at ``madvise``).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch

Data = bytes | bytearray | mmap.mmap
"""The content of a file."""

_LARGE = 4 * 2**20
"""Bytes from which on it pays."""


def buffer(nbytes: int) -> mmap.mmap | bytearray:
    """Writable memory; its content is zeros."""
    if nbytes < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(nbytes)
    try:
        pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return bytearray(nbytes)  # or a MemoryError, as everywhere
    with suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def empty(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """A tensor still to be filled, of the dtype and on the device of another."""
    number = prod(shape)
    if like.device.type != "cpu" or number * like.element_size() < _LARGE:
        return like.new_empty(shape)
    pages = buffer(number * like.element_size())
    return torch.frombuffer(pages, dtype=like.dtype, count=number).view(*shape)

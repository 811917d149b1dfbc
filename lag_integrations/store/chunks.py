"""Chunks of sequences: databases limit the parameters of a statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
CHUNK = 500
"""Items; with more rows a transaction, others would wait too long for their turn."""


def chunks(items: Sequence[_Item], *, size: int = CHUNK) -> Iterator[Sequence[_Item]]:
    """Yield parts of a sequence, each small enough for one statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

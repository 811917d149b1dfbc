"""Parts of sequences: databases limit the parameters of a statement, and memory is limited."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")
CHUNK = 500
"""Items; with more rows a transaction, others would wait too long for their turn."""
_PAGE_BYTES = 16 * 2**20


def chunks(items: Sequence[_Item], *, size: int = CHUNK) -> Iterator[Sequence[_Item]]:
    """Yield parts of a sequence, each small enough for one statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def pages(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Yield items in lists, each of at most 500 items and 16 MiB, or of one item.

    Args:
        items: The items.
        size: Bytes of an item.
    """
    page: list[_Item] = []
    filled = 0
    for item in items:
        if page and (len(page) == CHUNK or filled + size(item) > _PAGE_BYTES):
            yield page
            page, filled = [], 0
        page.append(item)
        filled += size(item)
    if page:
        yield page

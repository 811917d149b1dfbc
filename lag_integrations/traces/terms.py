"""The words of a text, for lexical search in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese, which put no spaces between words."""


def terms(text: str) -> list[str]:
    """Return the distinct words of a text, in order.

    Case and width are folded. A word with ``_`` counts as a whole and in its parts. Scripts without
    spaces are cut into pairs of characters.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return list(dict.fromkeys(part for word in _WORD.findall(folded) for part in _parts(word)))


def _parts(word: str) -> Iterator[str]:
    start = 0
    for run in _UNSPACED.finditer(word):
        yield from _joined(word[start : run.start()])
        characters = run.group()
        pairs = (characters[place : place + 2] for place in range(len(characters) - 1))
        yield from pairs if len(characters) > 1 else [characters]
        start = run.end()
    yield from _joined(word[start:])


def _joined(word: str) -> Iterator[str]:
    parts = [part for part in word.split("_") if part]
    if len(parts) > 1:
        yield word
    yield from parts

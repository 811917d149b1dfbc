"""How an answer reads, right or wrong: whether it repeats itself."""

from __future__ import annotations

_WORDS = 3


def repetition(text: str) -> float:
    """Return the share of runs of three words that stood in the text before.

    It is 0 of fewer than three words.
    """
    words = text.lower().split()
    runs = list(zip(*(words[place:] for place in range(_WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

"""What a conversation is searched by."""

from __future__ import annotations

from collections.abc import Sequence

_BEFORE = 500
"""Characters of an earlier message: embedders read some hundred words, and the newest count."""


def follow_up(text: str, before: str) -> str:
    """Return what a user said behind what they said before.

    "And how much does it cost?" says what is meant only with that.
    """
    return f"{before[:_BEFORE]}\n{text}"


def last_two(said: Sequence[str]) -> tuple[str, str | None]:
    """Return what a user said last, and what before; an empty text if they said nothing.

    Args:
        said: The user's messages, in order.
    """
    *earlier, last = [text for text in said if text.strip()] or [""]
    return last, earlier[-1] if earlier else None

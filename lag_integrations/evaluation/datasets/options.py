"""The options of multiple-choice questions and their letters."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

MOST = len(ascii_uppercase)
"""Options a question may have."""


def letters(options: Sequence[str]) -> tuple[str, ...]:
    """Return the letters of some options."""
    return tuple(ascii_uppercase[: len(options)])


def letter_of(options: Sequence[str], answer: str) -> str:
    """Return the letter of the option that is the answer; of equal ones, the first.

    Raises:
        ValueError: None is.
    """
    for letter, option in zip(ascii_uppercase, options, strict=False):
        if option.strip() == answer.strip():
            return letter
    raise ValueError("the answer is not among the options")

"""The text in which a call may begin, while it is written."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

Reading = Generator[None, None, T]
"""Reads a `HeldText`: yields where it needs more of it, and goes on there. So a text is read once,
however small the pieces are in which it comes."""

SPACE = re.compile(r"\s*")
_NEAR = 256
"""Characters within which a mark is looked for at first."""


@dataclass
class HeldText:
    """A text that is held back until it is known what it is.

    Attributes:
        text: What is written of it so far.
        is_whole: It is all there is: nothing waits any more.
    """

    text: str = ""
    is_whole: bool = False

    def past(self, pattern: re.Pattern[str], position: int) -> Reading[int]:
        """Skip what matches a pattern of any number of characters, up to what does not."""
        while True:
            found = pattern.match(self.text, position)
            position = found.end() if found else position
            if position < len(self.text) or self.is_whole:
                return position
            yield

    def after(self, mark: str, position: int) -> Reading[int]:
        """Skip a mark if it stands at a position."""
        while not self.is_whole and len(self.text) < position + len(mark):
            if not mark.startswith(self.text[position:]):
                break
            yield
        return position + len(mark) if self.text.startswith(mark, position) else position

    def first_of(self, marks: Sequence[str], position: int) -> Reading[tuple[int, int] | None]:
        """Return where the mark begins and ends that is the first to end; None without one."""
        longest = max(map(len, marks), default=0)
        while True:
            found = self.first_so_far(marks, position)
            if found or self.is_whole:
                return found
            position = max(position, len(self.text) - longest + 1)
            yield

    def first_so_far(self, marks: Sequence[str], position: int) -> tuple[int, int] | None:
        """Return the same as `first_of`, or None if no mark is written yet."""
        stop = position + _NEAR
        while True:  # further and further: of many marks, each may be near, and another nowhere
            begins = [(mark, self.text.find(mark, position, stop)) for mark in marks]
            ends = [(at + len(mark), at) for mark, at in begins if at >= 0]
            if ends:
                end, at = min(ends)
                return at, end
            if stop >= len(self.text):
                return None
            stop += stop - position


def result_of(reading: Reading[T]) -> T | None:
    """Read on as far as the text goes; None as long as that is not enough."""
    try:
        next(reading)
    except StopIteration as end:
        result: T = end.value
        return result
    return None

"""Whether two tasks of one kind are about other cases, so that each has an answer of its own."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d(?:[\d.,'\u2019]*\d)?")
_SEPARATORS = re.compile(r"[,'\u2019](?=\d{3}(?!\d))")


def other_case(task: str, logged: str) -> bool:
    """Return whether each of two tasks names a number that the other does not.

    "The margin of 45,000 on 150,000" is another case than "the margin of 8 million on 40 million".
    A question that names no number, or only some of the other's, may be about the same case.
    """
    mine, others = _numbers(task), _numbers(logged)
    return bool(mine - others) and bool(others - mine)


def _numbers(text: str) -> frozenset[str]:
    """Return the numbers in a text, however they are grouped: 1,000 is 1000."""
    found = (_SEPARATORS.sub("", number) for number in _NUMBER.findall(text))
    return frozenset(
        number.rstrip("0").rstrip(".") if "." in number else number for number in found
    )

"""Whether two tasks of one kind are about other cases, so that each has an answer of its own."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d(?:[\d.,'\u2019\u00a0\u202f]*\d)?")
_SEPARATOR = re.compile(r"[.,'\u2019\u00a0\u202f]")
_TIMES = re.compile(
    r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
    r"|\b\d{1,2}[./]\d{1,2}[./]\d{4}\b"
    r"|\b\d{1,2}:\d{2}(?::\d{2})?\b"
)
"""Dates and times of day: agents are told what day it is, whatever the task."""


def other_case(task: str, logged: str) -> bool:
    """Return whether each of two tasks names a number that the other does not.

    "The margin of 45,000 on 150,000" is another case than "the margin of 8 million on 40 million".
    A question that names no number, or only some of the other's, may be about the same case. How
    numbers are grouped does not count; nor do dates, times, and versions such as 3.11.4.
    """
    mine, others = _numbers(task), _numbers(logged)
    return _has_own(mine, others) and _has_own(others, mine)


def _has_own(mine: list[frozenset[str]], others: list[frozenset[str]]) -> bool:
    """Return whether there is a number that cannot be any of the others."""
    known = frozenset().union(*others)
    return any(not readings & known for readings in mine)


def _numbers(text: str) -> list[frozenset[str]]:
    """Return the numbers in a text, each as all that it may mean."""
    found = (_readings(number) for number in _NUMBER.findall(_TIMES.sub(" ", text)))
    return [readings for readings in found if readings]


def _readings(number: str) -> frozenset[str]:
    """Return what a number may mean: 2.000 is 2 or 2000; nothing if it is none, as 3.11.4."""
    groups, marks = _SEPARATOR.split(number), set(_SEPARATOR.findall(number))
    whole, *rest = groups
    if not rest:
        return frozenset([_plain(whole)])
    readings = set()
    is_grouped = 0 < len(whole) <= 3 and all(len(group) == 3 for group in rest)
    if is_grouped and len(marks) == 1:
        readings.add(_plain("".join(groups)))
    last = number[-len(rest[-1]) - 1]
    # A comma before three digits groups them; a point may do either.
    is_decimal = last == "." or (last == "," and not is_grouped)
    if is_decimal and number.count(last) == 1 and all(len(group) == 3 for group in rest[:-1]):
        readings.add(_plain("".join(groups[:-1]), rest[-1]))
    return frozenset(readings)


def _plain(whole: str, decimals: str = "") -> str:
    return f"{whole.lstrip('0') or '0'}.{decimals.rstrip('0')}".rstrip(".")

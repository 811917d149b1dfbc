"""Numbers in answers: "$1.2 million", "15 %", "-80,000"."""

from __future__ import annotations

import re

_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)])[-\u2212]\s?)?(?:(?<!\w)|(?<=\$))\$?\s?(?P<digits>\d[\d,]*\.?\d*|\.\d+)"
    r"(?:\s?(?P<unit>%|percent|thousand|million|billion|trillion))?",
    re.IGNORECASE,
)
_UNITS = {
    "%": 0.01,
    "percent": 0.01,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
}
_TOLERANCE, _ROUNDING = 0.01, 0.005


def numbers(text: str) -> list[tuple[float, ...]]:
    """Return the numbers in a text, in order.

    Each is what it says, and then what its digits alone say: 15 % is 0.15, but 15 where percent
    were asked for.
    """
    return [values for _, values in written_numbers(text)]


def written_numbers(text: str) -> list[tuple[str, tuple[float, ...]]]:
    """Return the numbers in a text as they are written, each with its values; see `numbers`."""
    found: list[tuple[str, tuple[float, ...]]] = []
    for number in _NUMBER.finditer(text):
        value = float(number["digits"].replace(",", "")) * (-1 if number["minus"] else 1)
        unit = (number["unit"] or "").lower()
        values = (value * _UNITS[unit], value) if unit else (value,)
        found.append((number[0].strip().rstrip(",."), values))
    return found


def last_number(text: str) -> str | None:
    """Return the last number in a text, as it is written."""
    found = [number[0].strip() for number in _NUMBER.finditer(text)]
    return found[-1] if found else None


def same_number(gold: str, value: float) -> bool:
    """Whether a number is a gold one, or is rounded to it: within 1 % or half of a hundredth."""
    wanted = float(gold)
    return abs(value - wanted) <= max(_TOLERANCE * abs(wanted), _ROUNDING + 1e-9)


def says_number(answer: str, gold: str) -> bool:
    """Whether the last number of an answer is the gold one."""
    found = numbers(answer)
    return bool(found) and any(same_number(gold, value) for value in found[-1])

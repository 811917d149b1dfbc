"""Calculations that an answer writes down: whether the procedure is right, whatever comes out.

Small models set a calculation up rightly and then compute wrongly: "3.9 / 135 * 100 = 27".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lag_integrations.evaluation.numbers import same_number

_TOKEN = re.compile(
    r"(?P<number>\$?\s?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s?(?:%|percent|thousand|million|billion)\b|%)?)"
    r"|(?P<operator>\*\*|[-+*/^()\u2212\u2013\u00d7\u00f7\u00b7]|x(?=\s?[\d$(]))"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_SAME = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": "*",
    "\u00b7": "*",
    "x": "*",
    "\u00f7": "/",
    "**": "^",
}
_UNITS = {"%": 0.01, "percent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_MOST_TOKENS = 64
_LARGEST_POWER = 1_000.0


def calculates(response: str, gold: str) -> bool:
    """Whether a calculation that a response writes down has a gold number as its result.

    The result may be in percent, and percent signs may be left out of account.
    """
    for tokens in _expressions(response):
        for percent in (0.01, 1.0):
            value = _Parser(tokens, percent).value()
            if value is not None and any(
                same_number(gold, one) for one in (value, 100 * value, value / 100)
            ):
                return True
    return False


def _expressions(text: str) -> Iterator[list[str]]:
    """Yield runs of numbers and operators, at least two numbers with an operator."""
    tokens: list[str] = []
    for found in [*_TOKEN.finditer(text), None]:
        if found is not None and found["space"]:
            continue
        if found is not None and (found["number"] or found["operator"]):
            token = found[0].strip().lower()
            tokens.append(_SAME.get(token, token))
            continue
        numbers = sum(token[0].isdigit() or token[0] in "$." for token in tokens)
        if numbers >= 2 and len(tokens) <= _MOST_TOKENS:
            yield tokens
        tokens = []


@dataclass
class _Parser:
    """Computes one expression, by precedence; None for what is none.

    Attributes:
        tokens: The expression.
        percent: What a percent sign multiplies by.
    """

    tokens: list[str]
    percent: float
    place: int = 0

    def value(self) -> float | None:
        # A sentence may leave a sign or a parenthesis at either end.
        while self.tokens and self.tokens[-1] in "+-*/^(":
            self.tokens = self.tokens[:-1]
        while self.tokens and self.tokens[0] in "+*/^)":
            self.tokens = self.tokens[1:]
        try:
            found = self._sum()
        except (ValueError, ZeroDivisionError, OverflowError):
            return None
        return found if self.place == len(self.tokens) and isinstance(found, float) else None

    def _next(self, *wanted: str) -> str | None:
        if self.place < len(self.tokens) and self.tokens[self.place] in wanted:
            self.place += 1
            return self.tokens[self.place - 1]
        return None

    def _sum(self) -> float:
        total = self._product()
        while operator := self._next("+", "-"):
            total += self._product() * (1 if operator == "+" else -1)
        return total

    def _product(self) -> float:
        total = self._power()
        while True:
            if operator := self._next("*", "/"):
                other = self._power()
                total = total * other if operator == "*" else total / other
            elif self.place < len(self.tokens) and self.tokens[self.place] == "(":
                total *= self._power()  # 1.2 (7 - 2)
            else:
                return total

    def _power(self) -> float:
        base = self._term()
        if not self._next("^"):
            return base
        exponent = self._power()
        if abs(exponent) > _LARGEST_POWER:
            raise ValueError("a power beyond all questions")
        return float(base**exponent) if base > 0 or exponent == int(exponent) else 0.0

    def _term(self) -> float:
        if self._next("-"):
            return -self._term()
        if self._next("("):
            inner = self._sum()
            self._next(")")  # a missing one at the end is no fault of the procedure
            return inner
        if self.place == len(self.tokens):
            raise ValueError("it ends with an operator")
        number = re.fullmatch(r"\$?\s?([\d,.]+)\s?(\w+|%)?", self.tokens[self.place])
        if number is None:
            raise ValueError("no number")
        self.place += 1
        unit = (number[2] or "").lower()
        factor = self.percent if unit in ("%", "percent") else _UNITS.get(unit, 1.0)
        return float(number[1].replace(",", "").rstrip(".")) * factor

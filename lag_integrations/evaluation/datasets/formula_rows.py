"""Questions on financial formulas as the ACE repository publishes them, and their arithmetic."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

from pydantic import BaseModel

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets.files import read_lines
from lag_integrations.evaluation.numbers import numbers, written_numbers
from lag_integrations.evaluation.questions import Question
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_CONTEXT = re.compile(
    r"Use formula (.+?) to answer the question\..*?Formula: (.+?), Explanation: (.+?)\. "
    r"Question:\s*(.+?)\.?\s*Answer:\s*",
    re.DOTALL,
)
_HEADING = re.compile(r"^\*\*.*?\*\*:\s*")
_MOST_NUMBERS, _ROUNDING = 4, 0.0051
_OPERATORS = "+-\u00d7/"
_PERCENT = " \u00d7 100"


class _Row(BaseModel):
    context: str
    target: float


@dataclass(frozen=True)
class FormulaQuestion:
    """A question and the formula that answers it.

    Attributes:
        id: File and line.
        name: The formula's name.
        formula: The formula.
        explanation: What its letters mean.
        text: The question, without name and formula.
        target: The published answer; some are wrong.
    """

    id: str
    name: str
    formula: str
    explanation: str
    text: str
    target: float

    @property
    def answer(self) -> str:
        """The target, with two decimal places at most."""
        return f"{self.target:.2f}".rstrip("0").rstrip(".")

    @property
    def can_be_had(self) -> bool:
        """Whether plain arithmetic with each of the question's numbers once gives the target."""
        return next(self._calculations(), None) is not None

    @cached_property
    def calculation(self) -> str | None:
        """The shortest such arithmetic with the operators of the formula, if there is any.

        A formula with numbers of its own has none, but for one that ends in percent.
        """
        formula = self.formula.partition(" = ")[2]
        told = formula.removesuffix(_PERCENT)
        if numbers(told) or not self.target:
            return None
        found = [text for text in self._calculations() if _operators(text) == _operators(told)]
        if not found:
            return None
        shortest = min(found, key=len)
        return shortest + _PERCENT if told != formula else shortest[1:-1]

    def _calculations(self) -> Iterator[str]:
        given = [(text, values[0]) for text, values in written_numbers(self.text)]
        if len(given) <= _MOST_NUMBERS:
            for text, value in _results(given):
                # In percent, too.
                if min(abs(value - self.target), abs(100 * value - self.target)) < _ROUNDING:
                    yield text


def read(path: Path) -> list[FormulaQuestion]:
    """Read a file.

    Raises:
        EvaluationError: It is missing or malformed.
    """
    rows = []
    for number, row in enumerate(read_lines(path, _Row)):
        found = _CONTEXT.fullmatch(row.context)
        if found is None:
            raise EvaluationError(f"{path}, line {number + 1}: no formula and question are in it.")
        name, formula, explanation, text = found.groups()
        text = _HEADING.sub("", text.strip()).strip('"“” \n')
        rows.append(
            FormulaQuestion(f"{path.stem}_{number}", name, formula, explanation, text, row.target)
        )
    return rows


def logged(one: FormulaQuestion, told: str) -> Question:
    """Return a question with the log of a run that looked the formula up.

    Args:
        one: The question.
        told: What its last response says before the answer.
    """
    log = Trace.from_messages(
        [
            Message(role="user", content=one.text),
            Message(role="assistant", content=f"I will look up the formula for {one.name}."),
            Message(
                role="user", content=f"Formula: {one.formula}. Explanation: {one.explanation}."
            ),
            Message(role="assistant", content=f"{told} <ans>{one.answer}</ans>"),
        ],
        task=one.text,
        outcome="success",
        metadata={"question_id": one.id, "made_from": "gold"},
    )
    return Question(one.id, one.text, (one.answer,), log=log, numeric=True, log_of=one.id)


def _results(given: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Return all results of arithmetic that uses each of some numbers once, and how they come."""
    if len(given) == 1:
        yield given[0]
    for (here, (one, first)), (there, (other, second)) in permutations(enumerate(given), 2):
        rest = [value for place, value in enumerate(given) if place not in (here, there)]
        if here < there:
            yield from _results([*rest, (f"({one} + {other})", first + second)])
            yield from _results([*rest, (f"({one} \u00d7 {other})", first * second)])
        yield from _results([*rest, (f"({one} - {other})", first - second)])
        if second:
            yield from _results([*rest, (f"({one} / {other})", first / second)])


def _operators(text: str) -> Counter[str]:
    return Counter(word for word in text.split() if word in _OPERATORS)

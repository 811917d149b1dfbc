"""Financial questions on formulas: of each formula a logged question, and a new instance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from pydantic import BaseModel

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets.files import Folder, read_lines
from lag_integrations.evaluation.datasets.splits import shuffled
from lag_integrations.evaluation.numbers import numbers, same_number
from lag_integrations.evaluation.questions import Dataset, Question
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_CONTEXT = re.compile(
    r"Use formula (.+?) to answer the question\..*?Formula: (.+?), Explanation: (.+?)\. "
    r"Question:\s*(.+?)\.?\s*Answer:\s*",
    re.DOTALL,
)
_HEADING = re.compile(r"^\*\*.*?\*\*:\s*")
_MOST_NUMBERS, _ROUNDING = 4, 0.0051


class _Row(BaseModel):
    context: str
    target: float


@dataclass(frozen=True)
class _Asked:
    id: str
    name: str
    formula: str
    explanation: str
    text: str
    target: float

    @property
    def answer(self) -> str:
        return f"{self.target:.2f}".rstrip("0").rstrip(".")


def load(data: Path, seed: int) -> Dataset:
    """Load a log for each formula, of a train question, and another question about it.

    Some targets are wrong in the source. A log is made of a question whose target can be had from
    its numbers by plain arithmetic, where there is one.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "formula")
    logged: dict[str, _Asked] = {}
    for one in shuffled(_read(folder.file("train.jsonl")), seed):
        there = logged.get(one.name)
        if there is None or (not _can_be_had(there) and _can_be_had(one)):
            logged[one.name] = one
    instances: dict[str, _Asked] = {}
    for one in shuffled(_read(folder.file("val.jsonl")), seed):
        log = logged.get(one.name)
        if log is not None and not same_number(one.answer, log.target):
            instances.setdefault(one.name, one)
    seen = {name: _seen(one) for name, one in logged.items()}
    related = (
        Question(
            one.id,
            one.text,
            (one.answer,),
            numeric=True,
            log_of=seen[name].id,
            old_answer=logged[name].answer,
            kind="instance",
        )
        for name, one in instances.items()
    )
    return Dataset("Formulas", tuple(seen.values()), related=tuple(related))


def _read(path: Path) -> list[_Asked]:
    rows = []
    for number, row in enumerate(read_lines(path, _Row)):
        found = _CONTEXT.fullmatch(row.context)
        if found is None:
            raise EvaluationError(f"{path}, line {number + 1}: no formula and question are in it.")
        name, formula, explanation, text = found.groups()
        text = _HEADING.sub("", text.strip()).strip('"“” \n')
        rows.append(_Asked(f"{path.stem}_{number}", name, formula, explanation, text, row.target))
    return rows


def _seen(one: _Asked) -> Question:
    """Return a question with the log of a run that looked the formula up."""
    told = f"Use {one.formula}. With the numbers of the question the answer is "
    log = Trace.from_messages(
        [
            Message(role="user", content=one.text),
            Message(role="assistant", content=f"I will look up the formula for {one.name}."),
            Message(
                role="user", content=f"Formula: {one.formula}. Explanation: {one.explanation}."
            ),
            Message(role="assistant", content=f"{told}<ans>{one.answer}</ans>"),
        ],
        task=one.text,
        outcome="success",
        metadata={"question_id": one.id, "made_from": "gold"},
    )
    return Question(one.id, one.text, (one.answer,), log=log, numeric=True, log_of=one.id)


def _can_be_had(one: _Asked) -> bool:
    given = [float(values[0]) for values in numbers(one.text)]
    return len(given) <= _MOST_NUMBERS and any(
        min(abs(value - one.target), abs(100 * value - one.target)) < _ROUNDING
        for value in _results(given)
    )


def _results(given: Sequence[float]) -> Iterator[float]:
    """Return all results of arithmetic that uses each of some numbers once."""
    if len(given) == 1:
        yield given[0]
    for (here, first), (there, second) in permutations(enumerate(given), 2):
        rest = [value for place, value in enumerate(given) if place not in (here, there)]
        for value in (
            *([first + second, first * second] if here < there else []),
            first - second,
            *([first / second] if second else []),
        ):
            yield from _results([*rest, value])

"""New questions on known formulas, which recall has to find: is a procedure learned?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lag_integrations.evaluation.datasets.files import Folder
from lag_integrations.evaluation.datasets.formula_rows import FormulaQuestion, logged, read
from lag_integrations.evaluation.datasets.splits import shuffled
from lag_integrations.evaluation.questions import Dataset, Question

_LOGS = 3
"""Of each formula."""


def load(data: Path, seed: int) -> Dataset:
    """Load three logs of each formula, of train questions, and all validation questions, unseen.

    A log shows the formula as the result of a look-up, and then the calculation with the
    question's numbers, where it is plain arithmetic. Questions come without name and formula.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "formula")
    by_formula: dict[str, list[FormulaQuestion]] = defaultdict(list)
    for one in shuffled(read(folder.file("train.jsonl")), seed):
        by_formula[one.name].append(one)
    seen = [_seen(one) for group in by_formula.values() for one in _best(group)]
    unseen = (
        Question(one.id, one.text, (one.answer,), numeric=True)
        for one in shuffled(read(folder.file("val.jsonl")), seed)
        if one.name in by_formula
    )
    return Dataset("New questions on formulas", tuple(seen), tuple(unseen))


def _best(group: Sequence[FormulaQuestion]) -> Sequence[FormulaQuestion]:
    """Return questions whose calculation is known first; then those whose target may be right."""
    ranked = sorted(group, key=lambda one: (one.calculation is None, not one.can_be_had))
    return ranked[:_LOGS]


def _seen(one: FormulaQuestion) -> Question:
    worked = one.calculation
    with_numbers = (
        f"With the numbers of the question: {worked} ="
        if worked
        else ("With the numbers of the question the answer is")
    )
    return logged(one, f"Use {one.formula}. {with_numbers}")

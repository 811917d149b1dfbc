"""Financial questions on formulas: of each formula a logged question, and a new instance."""

from __future__ import annotations

from pathlib import Path

from lag_integrations.evaluation.datasets.files import Folder
from lag_integrations.evaluation.datasets.formula_rows import FormulaQuestion, logged, read
from lag_integrations.evaluation.datasets.splits import shuffled
from lag_integrations.evaluation.numbers import same_number
from lag_integrations.evaluation.questions import Dataset, Question


def load(data: Path, seed: int) -> Dataset:
    """Load a log for each formula, of a train question, and another question about it.

    Some targets are wrong in the source. A log is made of a question whose target can be had from
    its numbers by plain arithmetic, where there is one.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "formula")
    chosen: dict[str, FormulaQuestion] = {}
    for one in shuffled(read(folder.file("train.jsonl")), seed):
        there = chosen.get(one.name)
        if there is None or (not there.can_be_had and one.can_be_had):
            chosen[one.name] = one
    instances: dict[str, FormulaQuestion] = {}
    for one in shuffled(read(folder.file("val.jsonl")), seed):
        log = chosen.get(one.name)
        if log is not None and not same_number(one.answer, log.target):
            instances.setdefault(one.name, one)
    seen = {
        name: logged(one, f"Use {one.formula}. With the numbers of the question the answer is")
        for name, one in chosen.items()
    }
    related = (
        Question(
            one.id,
            one.text,
            (one.answer,),
            numeric=True,
            log_of=seen[name].id,
            old_answer=chosen[name].answer,
            kind="instance",
        )
        for name, one in instances.items()
    )
    return Dataset("Formulas", tuple(seen.values()), related=tuple(related))

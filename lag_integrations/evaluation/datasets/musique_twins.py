"""Twins of MuSiQue's questions: another entity stands in place of one, and the old answer is wrong.

The other entity comes from a sub-question of the same relation, and where it leads to is known from
other questions' decompositions, so that each twin has a gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lag_integrations.evaluation.datasets import musique
from lag_integrations.evaluation.datasets.decomposition import facts, relation_of
from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.questions import Dataset, Question
from lag_integrations.evaluation.scoring import contains, normalize

_ALIKE = 0.3
"""Least share of words that the two questions have in common, without their entities: with fewer,
the other entity is often of another kind ("the county of Winchester", for that of a school)."""


@dataclass(frozen=True)
class _Named:
    """A two-step question that names the entity it begins with."""

    row: musique.Row
    entity: str
    relation: str

    @property
    def words(self) -> frozenset[str]:
        """The words of the question, without the entity."""
        return frozenset(normalize(self.row.question.replace(self.entity, " ")).split())


def load(data: Path, seed: int) -> Dataset:
    """Load the questions that have a twin, as logs, and their twins, of train and test file.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "musique")
    paths = [folder.find("dev_train.json", "train.json"), folder.find("dev_test.json", "test.json")]
    rows = [row for path in paths if path is not None for row in read_rows(path, musique.Row)]
    pairs = list(_pairs(rows))
    seen = (musique.question(row) for row, _ in pairs)
    return Dataset(
        "MuSiQue, twins",
        tuple(replace(question, log_of=question.id) for question in seen),
        related=tuple(twin for _, twin in pairs),
    )


def _pairs(rows: Sequence[musique.Row]) -> Iterator[tuple[musique.Row, Question]]:
    known = {
        normalize(asked): answer
        for row in rows
        for asked, answer in facts(row.question_decomposition)
    }
    named = [found for row in rows if (found := _named(row))]
    for one in named:
        others = (other for other in named if other.relation == one.relation and other != one)
        for other in sorted(others, key=lambda other: -_alike(one, other)):
            if _alike(one, other) < _ALIKE:
                break
            if twin := _twin(one, other, known):
                yield one.row, twin
                break


def _named(row: musique.Row) -> _Named | None:
    first = relation_of(row.question_decomposition[0].question)
    # Where an entity stands twice, or within a word, exchanging it makes no sentence.
    if len(row.question_decomposition) != 2 or first is None:
        return None
    once = row.question.count(first[0]) == 1
    whole = re.search(rf"(?<!\w){re.escape(first[0])}(?!\w)", row.question)
    return _Named(row, *first) if once and whole else None


def _alike(one: _Named, other: _Named) -> float:
    return len(one.words & other.words) / len(one.words | other.words)


def _twin(one: _Named, other: _Named, known: Mapping[str, str]) -> Question | None:
    """Return the question with the other's entity, if its answer is known and not found here."""
    bridge = other.row.question_decomposition[0]
    last = one.row.question_decomposition[1]
    (_, _), (asked, _) = facts([bridge, last])
    answer = known.get(normalize(asked))
    logged = gold_trace(musique.question(one.row))
    text = one.row.question.strip().replace(one.entity, other.entity)
    told = " ".join([text, *(message.text for message in logged.messages)])
    if answer is None or contains(told, answer):
        return None
    return Question(
        f"{one.row.id}~{other.row.id}",
        text,
        (answer,),
        log_of=one.row.id,
        old_answer=one.row.answer,
        kind="twin",
    )

"""The datasets of an evaluation, read from the folders in which they are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets import (
    formula,
    formula_unseen,
    gpqa,
    jsonl,
    mmlupro,
    musique,
    musique_closed,
    musique_dropped,
    musique_twins,
    react,
    two_wiki,
)
from lag_integrations.evaluation.datasets.splits import shuffled
from lag_integrations.evaluation.questions import Dataset

_LOADERS: Mapping[str, Callable[[Path, int], Dataset]] = {
    "musique": musique.load,
    "musique_closed": musique_closed.load,
    "musique_dropped": musique_dropped.load,
    "musique_twins": musique_twins.load,
    "formula": formula.load,
    "formula_unseen": formula_unseen.load,
    "2wiki": two_wiki.load,
    "mmlupro": mmlupro.load,
    "gpqa": gpqa.load,
    "react": react.load,
    "jsonl": jsonl.load,
}
NAMES = tuple(_LOADERS)
"""The datasets that can be loaded; ``jsonl`` is a folder of one's own."""

_UNSEEN_TO_SEEN = 3 / 7  # as in the paper's split


def load(name: str, data: Path, *, seed: int = 0, limit: int | None = None) -> Dataset:
    """Load a dataset.

    Args:
        name: One of `NAMES`.
        data: A folder in which each dataset has a folder; for ``jsonl``, the folder itself.
        seed: Decides a split that is not published, and the sample that `limit` takes.
        limit: Seen questions at most, those that are related to them, and 3/7 as many unseen ones:
            a random sample. The documents, and logs that come with a dataset, stay all.

    Raises:
        EvaluationError: There is no such dataset, or its files are missing or malformed.
    """
    if name not in _LOADERS:
        raise EvaluationError(f"There is no dataset {name!r}; there are {', '.join(NAMES)}.")
    dataset = _LOADERS[name](data, seed)
    questions = dataset.questions
    if not questions:
        raise EvaluationError(f"The dataset {name} in {data} has no questions.")
    _require_unique("questions", name, (question.id for question in questions))
    _require_unique("documents", name, (document.id for document in dataset.documents))
    if limit is None:
        return dataset
    if limit < 1:
        raise EvaluationError(f"The limit is {limit}; it must be at least one question.")
    seen = tuple(shuffled(dataset.seen, seed)[:limit])
    logged = {question.id for question in seen}
    return replace(
        dataset,
        seen=seen,
        related=tuple(one for one in dataset.related if one.log_of in logged),
        unseen=tuple(shuffled(dataset.unseen, seed)[: round(limit * _UNSEEN_TO_SEEN)]),
    )


def _require_unique(what: str, name: str, ids: Iterable[str]) -> None:
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise EvaluationError(
            f"{len(twice)} {what} of {name} have the id of another, {twice[0]!r} for one; give "
            "each its own."
        )

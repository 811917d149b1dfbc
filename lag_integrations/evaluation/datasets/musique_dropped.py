"""MuSiQue's intermediate answers, which stand in a log's trace and not in its last response."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lag_integrations.evaluation.datasets import musique
from lag_integrations.evaluation.datasets.decomposition import sub_questions
from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.questions import Dataset, Question
from lag_integrations.evaluation.scoring import contains


def load(data: Path, seed: int) -> Dataset:
    """Load the train questions with logs that end in the answer alone, and their sub-questions.

    The last sub-question is left out, and one whose answer can be read off itself or the last
    response.

    Raises:
        EvaluationError: The file is missing or malformed.
    """
    path = Folder(data, "musique").file("dev_train.json", "train.json")
    rows = [row for row in read_rows(path, musique.Row) if len(row.question_decomposition) > 1]
    seen = tuple(_seen(row) for row in rows)
    related = tuple(one for row in rows for one in _dropped(row))
    return Dataset("MuSiQue, intermediate answers", seen, related=related)


def _seen(row: musique.Row) -> Question:
    question = musique.question(row)
    return replace(question, log=gold_trace(question, brief=True), log_of=question.id)


def _dropped(row: musique.Row) -> Iterator[Question]:
    *before, _ = sub_questions(row.question_decomposition)
    for number, (asked, answer) in enumerate(before, 1):
        if not contains(row.answer, answer) and not contains(asked, answer):
            yield Question(f"{row.id}#{number}", asked, (answer,), log_of=row.id, kind="dropped")

"""MuSiQue, in the split of the LAG paper."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from lag_integrations.evaluation.datasets.decomposition import Step, facts
from lag_integrations.evaluation.datasets.documents import read_documents
from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.datasets.splits import train_and_test
from lag_integrations.evaluation.questions import Dataset, Question


class _Step(Step):
    document_id: str


class Row(BaseModel):
    """A question as it is published."""

    id: str
    question: str
    question_decomposition: list[_Step]
    answer: str
    answer_aliases: list[str]


def load(data: Path, seed: int) -> Dataset:
    """Load seen and unseen questions; documents only where there is a ``dev_docs.json``.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "musique")
    seen, unseen = train_and_test(folder, _questions, seed)
    return Dataset("MuSiQue", seen, unseen, read_documents(folder.find("dev_docs.json")))


def question(row: Row) -> Question:
    """Return a question with its decomposition."""
    return Question(
        id=row.id,
        text=row.question.strip(),
        answers=(row.answer, *row.answer_aliases),
        documents=frozenset(step.document_id for step in row.question_decomposition),
        facts=facts(row.question_decomposition),
    )


def _questions(path: Path) -> list[Question]:
    return [question(row) for row in read_rows(path, Row)]

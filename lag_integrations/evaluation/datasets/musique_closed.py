"""MuSiQue questions in a small world: a corpus that holds all their gold documents."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets.decomposition import Step, facts
from lag_integrations.evaluation.datasets.documents import read_documents
from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.datasets.splits import split
from lag_integrations.evaluation.questions import Dataset, Question


class _Paragraph(BaseModel):
    title: str
    paragraph_text: str
    is_supporting: bool


class _Row(BaseModel):
    id: str
    paragraphs: list[_Paragraph]
    question: str
    question_decomposition: list[Step]
    answer: str
    answer_aliases: list[str]


def load(data: Path, seed: int) -> Dataset:
    """Load the questions, split at random, and the corpus, in which titles may repeat.

    Raises:
        EvaluationError: A file is missing or malformed, or a gold paragraph is not in the corpus.
    """
    folder = Folder(data, "musique")
    path, corpus = folder.file("closed_questions.json"), folder.file("closed_corpus.json")
    documents = read_documents(corpus)
    ids = {(document.title, document.text): document.id for document in documents}
    questions = []
    for number, row in enumerate(read_rows(path, _Row)):
        gold = [
            ids.get((paragraph.title, paragraph.paragraph_text.strip()))
            for paragraph in row.paragraphs
            if paragraph.is_supporting
        ]
        known = frozenset(id for id in gold if id is not None)
        if None in gold:
            raise EvaluationError(
                f"{path}, row {number}: a supporting paragraph is not in {corpus.name}; are the "
                "two files of one release?"
            )
        questions.append(
            Question(
                id=row.id,
                text=row.question.strip(),
                answers=(row.answer, *row.answer_aliases),
                documents=known,
                facts=facts(row.question_decomposition),
            )
        )
    return Dataset("MuSiQue, closed", *split(questions, seed), documents)

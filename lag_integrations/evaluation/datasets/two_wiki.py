"""2WikiMultiHopQA."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pydantic import BaseModel, Field

from lag_integrations.evaluation.datasets.documents import read_documents
from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.datasets.splits import train_and_test
from lag_integrations.evaluation.questions import Dataset, Question

_NO_NOUN = (" at", " by")  # "founded by": not "founded by of …"


class _Row(BaseModel):
    id: str = Field(alias="_id")
    question: str
    supporting_facts: list[tuple[str, int]]
    evidences: list[tuple[str, str, str]]
    answer: str


def load(data: Path, seed: int) -> Dataset:
    """Load the questions and their corpus, from a folder ``2wiki`` or ``wikihop``.

    Gold documents are the titles of the supporting facts. One that is not in the corpus is known by
    its title.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    folder = Folder(data, "2wiki", "wikihop")
    documents = read_documents(folder.find("dev_docs.json", "corpus.json"))
    ids = {document.title.casefold(): document.id for document in documents}
    ids |= {document.title: document.id for document in documents}  # titles may differ by case only
    read = partial(_questions, ids)
    seen, unseen = train_and_test(folder, read, seed, unsplit=["closed_questions.json"])
    return Dataset("2WikiMultiHopQA", seen, unseen, documents)


def _questions(ids: dict[str, str], path: Path) -> list[Question]:
    return [
        Question(
            id=row.id,
            text=row.question.strip(),
            answers=(row.answer,),
            documents=frozenset(
                ids.get(title) or ids.get(title.casefold(), title)
                for title, _ in row.supporting_facts
            ),
            facts=tuple(
                (_asked(subject, relation), found) for subject, relation, found in row.evidences
            ),
        )
        for row in read_rows(path, _Row)
    ]


def _asked(subject: str, relation: str) -> str:
    if relation.endswith(_NO_NOUN):
        return f"{subject}, {relation}"
    return f"{relation} of {subject}"

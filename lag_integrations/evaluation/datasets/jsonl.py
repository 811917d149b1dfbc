"""Questions of one's own, in a folder of JSONL files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lag_integrations.errors import EvaluationError, TraceError
from lag_integrations.evaluation.datasets.files import Folder, read_lines
from lag_integrations.evaluation.datasets.options import MOST, letter_of, letters
from lag_integrations.evaluation.datasets.splits import Split, split
from lag_integrations.evaluation.questions import Dataset, Document, Question
from lag_integrations.traces.trace import Trace
from lag_integrations.traces.trace_file import TraceFile

_Text = Annotated[str, Field(min_length=1)]


class _Line(BaseModel):
    # A key that is misspelled would have no effect; space around a text has no meaning.
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class _Question(_Line):
    question: _Text
    answer: _Text | Annotated[list[_Text], Field(min_length=1)]
    id: str | None = None
    options: list[_Text] = Field(default=[], max_length=MOST)
    documents: list[str] = []
    solution: str = ""
    facts: list[tuple[_Text, _Text]] = []
    split: Literal["seen", "unseen"] | None = None

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> _Question:
        _ = self.answers
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        answers = (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)
        if not self.options:
            return answers
        if len(answers) > 1:
            raise ValueError("a question with options has one answer")
        if answers[0] in letters(self.options):
            return answers
        return (letter_of(self.options, answers[0]),)


class _Document(_Line):
    id: str
    title: str = ""
    text: str


def load(data: Path, seed: int) -> Dataset:
    """Load ``questions.jsonl``, with ``documents.jsonl`` and ``logs.jsonl`` if there are any.

    An answer that is both a letter and the text of an option is taken for the letter. Rows without
    an id are numbered.

    Raises:
        EvaluationError: A file is missing or malformed, rows name documents that are not there, or
            some rows say which split they belong to and others do not.
    """
    folder = Folder(data, ".")
    path = folder.file("questions.jsonl")
    rows = read_lines(path, _Question)
    documents = _documents(folder.find("documents.jsonl"))
    questions = [_question(number, row) for number, row in enumerate(rows, 1)]
    if documents:
        known = {document.id for document in documents}
        for question in questions:
            if unknown := question.documents - known:
                raise EvaluationError(
                    f"{path}: question {question.id!r} names the document {min(unknown)!r}, which "
                    "is not in documents.jsonl."
                )
    seen, unseen = _split(path, rows, questions, seed)
    return Dataset(data.resolve().name, seen, unseen, documents, _logs(folder.find("logs.jsonl")))


def _question(number: int, row: _Question) -> Question:
    return Question(
        id=str(number) if row.id is None else row.id,
        text=row.question,
        answers=row.answers,
        options=tuple(row.options),
        documents=frozenset(row.documents),
        facts=tuple(row.facts),
        solution=row.solution,
    )


def _split(
    path: Path, rows: Sequence[_Question], questions: Sequence[Question], seed: int
) -> Split:
    of = {
        name: tuple(q for row, q in zip(rows, questions, strict=True) if row.split == name)
        for name in ("seen", "unseen", None)
    }
    if len(of[None]) == len(rows):
        return split(questions, seed)
    if of[None]:
        raise EvaluationError(
            f'{path}: question {of[None][0].id!r} has no "split" ("seen" or "unseen"), but others '
            "have; give it to all, or to none for a random split."
        )
    return of["seen"], of["unseen"]


def _documents(path: Path | None) -> tuple[Document, ...]:
    rows = [] if path is None else read_lines(path, _Document)
    return tuple(Document(row.id, row.title, row.text) for row in rows)


def _logs(path: Path | None) -> tuple[Trace, ...]:
    if path is None:
        return ()
    try:
        return tuple(TraceFile(str(path)))
    except TraceError as error:
        raise EvaluationError(str(error)) from error

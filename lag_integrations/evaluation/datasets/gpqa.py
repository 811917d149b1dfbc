"""GPQA: multiple choice, graduate-level science."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.datasets.options import MOST, letter_of
from lag_integrations.evaluation.datasets.splits import train_and_test
from lag_integrations.evaluation.questions import Dataset, Question


class _Row(BaseModel):
    question: str
    choices: list[str] = Field(min_length=2, max_length=MOST)
    answer: str

    @model_validator(mode="after")
    def _answer_is_a_choice(self) -> _Row:
        letter_of(self.choices, self.answer)
        return self


def load(data: Path, seed: int) -> Dataset:
    """Load the questions, numbered within their file: their rows have no ids.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    return Dataset("GPQA", *train_and_test(Folder(data, "gpqa"), _questions, seed))


def _questions(path: Path) -> list[Question]:
    return [
        Question(
            id=f"{path.stem}_{number}",
            text=row.question.strip(),
            answers=(letter_of(row.choices, row.answer),),
            options=tuple(choice.strip() for choice in row.choices),
        )
        for number, row in enumerate(read_rows(path, _Row))
    ]

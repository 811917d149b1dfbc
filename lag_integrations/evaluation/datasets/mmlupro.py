"""MMLU-Pro: multiple choice over many subjects."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, Field, model_validator

from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.datasets.options import MOST, letters
from lag_integrations.evaluation.datasets.splits import train_and_test
from lag_integrations.evaluation.questions import Dataset, Question


class _Row(BaseModel):
    question_id: int | str
    question: str
    options: list[str] = Field(min_length=2, max_length=MOST)
    answer: str
    cot_content: str

    @model_validator(mode="after")
    def _answer_is_a_letter(self) -> _Row:
        if self.answer not in letters(self.options):
            raise ValueError("answer must be the letter of an option")
        return self


def load(data: Path, seed: int) -> Dataset:
    """Load the questions; of the 700 in the LAG paper's train split, 2 have a worked solution.

    Raises:
        EvaluationError: A file is missing or malformed.
    """
    return Dataset("MMLU-Pro", *train_and_test(Folder(data, "mmlupro"), _questions, seed))


def _questions(path: Path) -> list[Question]:
    return [
        Question(
            id=str(row.question_id),
            text=row.question.strip(),
            answers=(row.answer,),
            options=tuple(option.strip() for option in row.options),
            solution=_solution(row.cot_content),
        )
        for row in read_rows(path, _Row)
    ]


def _solution(text: str) -> str:
    text = re.sub(r"^\s*(A:\s*)?Let's think step by step\.", "", text)
    return re.sub(r"The answer is \(\w\)\.?\s*$", "", text).strip()

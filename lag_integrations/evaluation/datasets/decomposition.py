"""MuSiQue's decompositions as facts that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import BaseModel


class Step(BaseModel):
    """A sub-question.

    Attributes:
        question: A question, or ``entity >> relation``; ``#1`` is the answer to the first one.
        answer: Its answer.
    """

    question: str
    answer: str


def facts(steps: Iterable[Step]) -> tuple[tuple[str, str], ...]:
    """The sub-questions and their answers; ``entity >> relation`` becomes ``entity, relation``."""
    answers: list[str] = []

    def answer(reference: re.Match[str]) -> str:
        number = int(reference[1])
        return answers[number - 1] if 1 <= number <= len(answers) else reference[0]

    found = []
    for step in steps:
        asked = re.sub(r"#(\d+)", answer, step.question)
        asked = re.sub(r"\s*>>\s*", ", ", asked)
        asked = re.sub(r"\s+([?,.;]|'s\b)", r"\1", asked)  # "#1 's capital ?"
        answers.append(step.answer.strip())
        found.append((" ".join(asked.split()), answers[-1]))
    return tuple(found)

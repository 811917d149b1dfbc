"""MuSiQue's decompositions as facts that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from pydantic import BaseModel


class Step(BaseModel):
    """A sub-question.

    Attributes:
        question: A question, or ``entity >> relation``; ``#1`` is the answer to the first one.
        answer: Its answer.
    """

    question: str
    answer: str


# Relations that cannot be asked for with "What is the … of …?".
_ASKED = {
    "contains administrative territorial entity": "What administrative territory does {} contain?",
    "followed by": "What is {} followed by?",
    "has part": "Who or what is a part of {}?",
    "instance of": "What is {} an instance of?",
    "located in the administrative territorial entity": "In which administrative territory is {}?",
    "located on terrain feature": "On which terrain feature is {}?",
    "participant": "Who or what took part in {}?",
    "present in work": "In which work is {} present?",
    "shares border with": "With what does {} share a border?",
    "member of": "What is {} a member of?",
    "part of": "What is {} a part of?",
    "part of the series": "Which series is {} a part of?",
    "member of sports team": "Which sports team is {} a member of?",
    "member of political party": "Which political party is {} a member of?",
}
_PEOPLE = {
    *("author", "cast member", "child", "composer", "creator", "director", "father", "founder"),
    *("mother", "performer", "producer", "screenwriter", "sibling", "spouse"),
}
# Relations that end so stand after their entity: "educated at", "licensed to broadcast to".
_LAST = ("after", "at", "by", "from", "in", "of", "on", "to", "with")


def facts(steps: Iterable[Step]) -> tuple[tuple[str, str], ...]:
    """Return the sub-questions (``entity >> relation`` as ``entity, relation``) and answers."""
    return tuple((re.sub(r"\s*>>\s*", ", ", asked), answer) for asked, answer in _filled(steps))


def sub_questions(steps: Iterable[Step]) -> tuple[tuple[str, str], ...]:
    """Return the sub-questions as people would ask them, and their answers."""
    return tuple((_question(asked), answer) for asked, answer in _filled(steps))


def relation_of(question: str) -> tuple[str, str] | None:
    """Return entity and relation of a sub-question that names both; else None."""
    entity, arrow, relation = (part.strip() for part in question.partition(">>"))
    return (entity, relation) if arrow and "#" not in entity else None


def _question(asked: str) -> str:
    entity, arrow, relation = (part.strip() for part in asked.partition(">>"))
    if not arrow:
        return asked[0].upper() + asked[1:].rstrip("?. ") + "?"
    if relation.split()[-1] in _LAST:
        asked = f"What is {entity} {relation}?"
    else:
        asked = f"{'Who' if relation in _PEOPLE else 'What'} is the {relation} of {entity}?"
    return _ASKED.get(relation, asked).format(entity)


def _filled(steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """Return the sub-questions with the answers that they refer to, and their answers."""
    answers: list[str] = []

    def answer(reference: re.Match[str]) -> str:
        number = int(reference[1])
        return answers[number - 1] if 1 <= number <= len(answers) else reference[0]

    for step in steps:
        asked = re.sub(r"#(\d+)", answer, step.question)
        asked = re.sub(r"\s+([?,.;]|'s\b)", r"\1", asked)  # "#1 's capital ?"
        answers.append(step.answer.strip())
        yield " ".join(asked.split()), answers[-1]

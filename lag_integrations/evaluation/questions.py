"""What an evaluation asks: questions with their gold answers, and the documents around them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Literal

from lag_integrations.traces.trace import Trace

Stratum = Literal["seen", "overlapping", "unseen", "dropped", "twin", "instance"]
"""Seen: the question's own log is in the store. Overlapping: it is not, but a log whose question
has a gold document in common is. Unseen: neither.

Dropped: its answer stands in the log's trace, but not in the last response. Twin: a logged question
with another entity in place of one that it names, so that the log's answer is wrong. Instance: a
new instance of a logged task, with other numbers."""


@dataclass(frozen=True)
class Document:
    """A text that an agent may find.

    Attributes:
        id: Its id among the documents.
        title: Its title.
        text: What it says.
    """

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question and what is known about it.

    Attributes:
        id: Its id in the dataset.
        text: The question.
        answers: What counts as right, the gold answer first. With options, it is one letter.
        options: The options of a multiple-choice question, in the order of their letters.
        documents: Ids of its gold documents, where they are known.
        facts: Its gold decomposition: sub-questions and their answers, in order.
        solution: A worked solution, without the answer's tag.
        log: Its log; by default one is made of what is known of it.
        numeric: Whether the answer is a number, which may be worked out.
        log_of: The question whose log it is given, alone, whatever would be recalled.
        old_answer: What that log answered, where it is wrong here.
        kind: Its stratum, where it does not follow from the documents.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    documents: frozenset[str] = frozenset()
    facts: tuple[tuple[str, str], ...] = ()
    solution: str = ""
    log: Trace | None = None
    numeric: bool = False
    log_of: str | None = None
    old_answer: str | None = None
    kind: Stratum | None = None

    @property
    def lettered(self) -> str:
        """The options as they are shown: one a line, ``(A) …``."""
        return "\n".join(
            f"({letter}) {option}"
            for letter, option in zip(ascii_uppercase, self.options, strict=False)
        )


@dataclass(frozen=True)
class Dataset:
    """Questions, split as in the paper's protocol.

    Attributes:
        name: For people.
        seen: The questions that logs are made of, and that are asked again.
        unseen: The questions that no log is made of.
        documents: What agents search; empty where there is nothing to find.
        logs: Traces that come with the dataset; they are stored as they are, instead of traces made
            of the seen questions.
        related: Further questions about the logs of those that are seen.
    """

    name: str
    seen: tuple[Question, ...]
    unseen: tuple[Question, ...] = ()
    documents: tuple[Document, ...] = ()
    logs: tuple[Trace, ...] = ()
    related: tuple[Question, ...] = ()

    @property
    def questions(self) -> tuple[Question, ...]:
        """All that can be asked."""
        return (*self.seen, *self.unseen, *self.related)

    @property
    def digest(self) -> str:
        """Identity of all that is in it."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.seen, self.unseen, self.related):
            found.update(f"{len(part)} questions".encode())
            for question in part:
                # A set has no order of its own, and a trace has an id and a time.
                fixed = replace(question, documents=frozenset(), log=None)
                found.update(f"{fixed!r} {sorted(question.documents)}".encode())
                if question.log is not None:
                    found.update(question.log.content_hash.encode())
        for document in self.documents:
            found.update(repr(document).encode())
        for log in self.logs:
            found.update(log.content_hash.encode())
        return found.hexdigest()

    def stratum(self, question: Question) -> Stratum:
        """Return how near a question is to those that logs are made of."""
        if question.kind is not None:
            return question.kind
        if any(question.id == other.id or question.text == other.text for other in self.seen):
            return "seen"
        if any(question.documents & other.documents for other in self.seen):
            return "overlapping"
        return "unseen"

"""The tags in which the paper's agent answers, searches, or asks on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from lag_integrations.evaluation.numbers import last_number
from lag_integrations.evaluation.questions import Question

ANSWER, KEYWORDS, SUBQUESTION = "ans", "keywords", "subquestion"


def answer_of(response: str, question: Question) -> str | None:
    """Return the answer in a response, or None if there is none.

    Args:
        response: What the model wrote.
        question: The question; with options, the answer is a letter. A number that is asked for
            needs no tag: it is the last one.
    """
    # The end tag is missing where generation stopped at it.
    said = _tagged(response, ANSWER, end=rf"</{ANSWER}>|\Z")
    if not said or not said[-1]:
        return last_number(response) if question.numeric else None
    return _letter(said[-1], question.options) if question.options else said[-1]


def query_of(response: str) -> str:
    """Return what a response without an answer wants to search for next."""
    keywords = _tagged(response, KEYWORDS)
    if keywords:
        return keywords[-1] or response
    subquestions = dict.fromkeys(_tagged(response, SUBQUESTION))
    return " ".join(subquestions) or response


def untagged(response: str) -> str:
    """Return a response without its tags."""
    return re.sub(rf"</?(?:{ANSWER}|{KEYWORDS}|{SUBQUESTION})>", " ", response)


def _tagged(text: str, tag: str, end: str | None = None) -> list[str]:
    found = re.findall(rf"<{tag}>(.*?)(?:{end or f'</{tag}>'})", text, re.DOTALL)
    return [" ".join(part.split()) for part in found]


def _letter(answer: str, options: Sequence[str]) -> str:
    """Return the letter of an option, however the answer names it."""
    letters = ascii_uppercase[: len(options)]
    named = re.fullmatch(rf"\W*(?:option\s+)?\(?([{letters}])\W*", answer, re.IGNORECASE)
    if named:
        return named[1].upper()
    for letter, option in zip(letters, options, strict=False):
        if option.strip(" .").lower() == answer.strip(" .").lower():
            return letter
    # "(A) A rise" begins with a letter, "A rise" does not.
    begins = re.match(rf"\W*(?:option\s+)?\(?([{letters}])\s*[).:]", answer, re.IGNORECASE)
    return begins[1].upper() if begins else answer

"""Scores of short answers, as in SQuAD."""

from __future__ import annotations

import re
import string
from collections import Counter

from lag_integrations.evaluation.numbers import says_number
from lag_integrations.evaluation.questions import Question


def normalize(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and extra space."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether an answer is the gold answer."""
    return normalize(answer) == normalize(gold)


def contains(answer: str, gold: str) -> bool:
    """Whether the gold answer stands somewhere in an answer."""
    return normalize(gold) in normalize(answer)


def f1(answer: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall of the words, from 0 to 1."""
    said, wanted = normalize(answer).split(), normalize(gold).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def same(answer: str | None, gold: str, question: Question) -> bool:
    """Whether what a question was answered is some answer; a number need not be written alike."""
    if answer is None:
        return False
    if question.options:
        return answer == gold
    return says_number(answer, gold) if question.numeric else exact_match(answer, gold)


def scores(answer: str | None, question: Question) -> tuple[bool, float]:
    """Return exact match and F1; for a letter or a number, both say whether it is right."""
    right = any(same(answer, gold, question) for gold in question.answers)
    if answer is None or question.options or question.numeric:
        return right, float(right)
    return right, max(f1(answer, gold) for gold in question.answers)

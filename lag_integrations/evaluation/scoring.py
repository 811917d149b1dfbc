"""Scores of short answers, as in SQuAD."""

from __future__ import annotations

import re
import string


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra space."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether an answer is the gold answer."""
    return normalize(answer) == normalize(gold)


def contains(answer: str, gold: str) -> bool:
    """Whether the gold answer stands somewhere in an answer."""
    return normalize(gold) in normalize(answer)

"""What an answer's form may be held to, so that a program can tell whether it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_FUNCTION_WORDS = {
    "English": {"the", "and", "is", "of", "to", "in", "that", "it", "for", "are", "you", "with"},
    "German": {"der", "die", "das", "und", "ist", "ein", "eine", "zu", "nicht", "sie", "es", "den"},
    "French": {"le", "la", "les", "et", "est", "un", "une", "de", "des", "pour", "que", "vous"},
}


@dataclass(frozen=True)
class Constraint:
    """A demand on the form of an answer.

    Attributes:
        name: Its name.
        text: What the user says.
        is_met: Tells it of an answer that says something.
    """

    name: str
    text: str
    is_met: Callable[[str], bool]

    def judge(self, answer: str) -> bool:
        """Tell whether an answer keeps to it."""
        return bool(answer.strip()) and self.is_met(answer.strip())


def _at_most(words: int) -> Callable[[str], bool]:
    return lambda answer: len(answer.split()) <= words


def _is_json(answer: str) -> bool:
    fenced = _FENCE.fullmatch(answer)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    return isinstance(found, dict) and set(found) == {"answer", "reason"}


def _lines(begin: str, number: int) -> Callable[[str], bool]:
    def is_met(answer: str) -> bool:
        lines = [line for line in answer.splitlines() if line.strip()]
        return len(lines) == number and all(re.match(begin, line) for line in lines)

    return is_met


def _is_numbered(answer: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return [line.split(".")[0].strip() for line in lines] == ["1", "2", "3", "4"]


def _in(language: str) -> Callable[[str], bool]:
    def is_met(answer: str) -> bool:
        words = [word.lower() for word in _WORD.findall(answer)]
        counts = {
            name: sum(word in known for word in words) for name, known in _FUNCTION_WORDS.items()
        }
        return counts.pop(language) > max(counts.values())

    return is_met


CONSTRAINTS = (
    Constraint("10 words", "Answer in at most 10 words.", _at_most(10)),
    Constraint("30 words", "Answer in at most 30 words.", _at_most(30)),
    Constraint(
        "one word",
        "Answer with one single word.",
        lambda answer: len(answer.split()) == 1,
    ),
    Constraint(
        "two sentences",
        "Answer in exactly two sentences.",
        lambda answer: len(_SENTENCE_END.findall(answer)) == 2,
    ),
    Constraint(
        "JSON",
        'Answer with a JSON object with the keys "answer" and "reason", and nothing else.',
        _is_json,
    ),
    Constraint("lower case", "Write in lower case only.", lambda answer: answer == answer.lower()),
    Constraint(
        "capitals", "Write in CAPITAL LETTERS only.", lambda answer: answer == answer.upper()
    ),
    Constraint(
        "three points",
        'Answer with exactly three lines, each of which begins with "- ".',
        _lines(r"- ", 3),
    ),
    Constraint(
        "four numbered",
        "Answer with a numbered list of exactly four lines, 1. to 4., and nothing else.",
        _is_numbered,
    ),
    Constraint(
        "ending",
        'End your answer with the words "That is all."',
        lambda answer: answer.endswith("That is all."),
    ),
    Constraint(
        "beginning",
        'Begin your answer with the word "Certainly".',
        lambda answer: answer.startswith("Certainly"),
    ),
    Constraint("no comma", "Do not use any commas.", lambda answer: "," not in answer),
    Constraint(
        "no digit",
        "Do not use any digits.",
        lambda answer: not any(character.isdigit() for character in answer),
    ),
    Constraint("German", "Answer in German.", _in("German")),
    Constraint("French", "Answer in French.", _in("French")),
    Constraint(
        "quotation marks",
        "Put your whole answer in double quotation marks.",
        lambda answer: len(answer) > 2 and answer[0] in '"“' and answer[-1] in '"”',
    ),
    Constraint(
        "title",
        "Begin with a title in double angle brackets, such as <<Title>>.",
        lambda answer: re.match(r"<<[^<>]+>>", answer) is not None,
    ),
    Constraint("question", "End your answer with a question.", lambda answer: answer.endswith("?")),
    Constraint(
        "therefore",
        'Use the word "therefore".',
        lambda answer: "therefore" in answer.lower().split() or "therefore," in answer.lower(),
    ),
    Constraint(
        "bold",
        "Mark one word in bold, with two asterisks before it and after it.",
        lambda answer: re.search(r"\*\*[^*\s]+\*\*", answer) is not None,
    ),
)
"""All of them."""

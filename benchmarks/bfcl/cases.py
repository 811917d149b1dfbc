"""BFCL's questions: what is asked, with which tools, and which calls are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lag_integrations.evaluation.tool_tasks.bfcl import as_tool, data_folder, read_rows

CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple")
"""The categories that can be asked."""


@dataclass(frozen=True)
class Case:
    """A question.

    Attributes:
        id: Its id.
        category: Its category.
        messages: The conversation, in OpenAI's form.
        functions: The functions, as BFCL describes them.
        gold: The right calls: each a function's name with the values that every argument may have.
    """

    id: str
    category: str
    messages: tuple[dict[str, Any], ...]
    functions: tuple[dict[str, Any], ...]
    gold: tuple[dict[str, Any], ...]

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The functions as tools in OpenAI's form."""
        return [as_tool(function) for function in self.functions]


def read_cases(category: str, number: int) -> list[Case]:
    """Read the first questions of a category whose numbers are even.

    Args:
        category: One of `CATEGORIES`.
        number: How many at most.

    Raises:
        EvaluationError: BFCL is not installed.
    """
    folder = data_folder()
    file = f"BFCL_v4_{category}.json"
    answers = read_rows(folder / "possible_answer" / file)
    gold = {entry["id"]: entry["ground_truth"] for entry in answers}
    cases = [
        Case(
            id=entry["id"],
            category=category,
            messages=tuple(entry["question"][0]),
            functions=tuple(entry["function"]),
            gold=tuple(gold[entry["id"]]),
        )
        for entry in read_rows(folder / file)
        if is_even(entry["id"], category)
    ]
    return cases[:number]


@dataclass(frozen=True)
class Talk:
    """A task of several turns.

    Attributes:
        id: Its id.
        asked: What the user says, turn by turn.
        calls: The right calls of each turn, as Python writes them.
    """

    id: str
    asked: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]


def read_talks(every: int) -> list[Talk]:
    """Read one in some of the tasks of ``multi_turn_base``.

    Raises:
        EvaluationError: BFCL is not installed.
    """
    folder, file = data_folder(), "BFCL_v4_multi_turn_base.json"
    rows = zip(read_rows(folder / file), read_rows(folder / "possible_answer" / file), strict=True)
    return [
        Talk(
            entry["id"],
            tuple(turn[0]["content"] for turn in entry["question"]),
            tuple(map(tuple, answer["ground_truth"])),
        )
        for number, (entry, answer) in enumerate(rows)
        if number % every == 0
    ]


def is_even(id: str, category: str) -> bool:
    """Whether the first number of an id is even, as of ``multiple_12``, ``live_simple_4-1-0``."""
    return int(id.removeprefix(f"{category}_").split("-")[0]) % 2 == 0

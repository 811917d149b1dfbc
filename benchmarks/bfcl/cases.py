"""BFCL's questions: what is asked, with which tools, and which calls are right."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag_integrations.errors import EvaluationError

CATEGORIES = ("simple_python", "multiple", "parallel", "live_simple")
"""The categories that can be asked."""

_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""JSON schema's names of BFCL's types; others are the same, and "any" has none."""


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
    folder = _folder()
    file = f"BFCL_v4_{category}.json"
    answers = _lines(folder / "possible_answer" / file)
    gold = {entry["id"]: entry["ground_truth"] for entry in answers}
    cases = [
        Case(
            id=entry["id"],
            category=category,
            messages=tuple(entry["question"][0]),
            functions=tuple(entry["function"]),
            gold=tuple(gold[entry["id"]]),
        )
        for entry in _lines(folder / file)
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
    folder, file = _folder(), "BFCL_v4_multi_turn_base.json"
    rows = zip(_lines(folder / file), _lines(folder / "possible_answer" / file), strict=True)
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


def as_tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function as a tool in OpenAI's form, whose names hold no dots."""
    return {
        "type": "function",
        "function": {
            "name": function["name"].replace(".", "_"),
            "description": function["description"],
            "parameters": _schema(function["parameters"]),
        },
    }


def _schema(described: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(described)
    kind = schema.pop("type", "any")
    if kind != "any":
        schema["type"] = _TYPES.get(kind, kind)
    if "properties" in schema:
        schema["properties"] = {
            name: _schema(value) for name, value in schema["properties"].items()
        }
    if "items" in schema:
        schema["items"] = _schema(schema["items"])
    return schema


def _folder() -> Path:
    # Found without importing it: what it imports needs the clients of every vendor.
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or not found.submodule_search_locations:
        raise EvaluationError(
            "BFCL is not installed. Use `make bfcl`, or: pip install --no-deps bfcl-eval==2026.3.23"
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)

"""A small house with lamps and a safe, and tasks in it: what BFCL's simulators are like."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from lag_integrations.evaluation.tool_tasks.judge import Checkers
from lag_integrations.evaluation.tool_tasks.tasks import Task, parse_call

installed = pytest.mark.skipif(
    importlib.util.find_spec("bfcl_eval") is None,
    reason="bfcl-eval is not installed; `make bfcl` installs it",
)


class Lamps:
    """Lamps in rooms."""

    def __init__(self) -> None:
        self.lit: list[str] = []
        self.notes: list[list[str]] = []

    def light(self, room: str) -> dict[str, Any]:
        if room == "attic":
            return {"error": "the attic has no lamp"}
        self.lit.append(room)
        return {"lit": room}

    def count(self) -> dict[str, int]:
        return {"count": len(self.lit)}

    def note(self, lines: list[str]) -> None:
        self.notes.append(lines)

    def burn(self) -> str:
        self.lit.append("everything")
        return "burnt"

    def _load_scenario(self, scenario: dict[str, Any]) -> None:
        self.lit.append("loaded")


class Safe:
    """A safe, which nobody may open."""

    def __init__(self) -> None:
        self.is_open = False

    def knock(self) -> str:
        return "knock"

    def open(self) -> None:
        self.is_open = True


PARAMETERS: dict[str, list[str]] = {"light": ["room"], "count": [], "note": ["lines"], "knock": []}


def tool(name: str) -> dict[str, Any]:
    kind = {"room": "string", "lines": "array"}
    properties = {one: {"type": kind[one]} for one in PARAMETERS[name]}
    parameters = {"type": "object", "properties": properties, "required": PARAMETERS[name]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def task(id: str, *turns: tuple[str, tuple[str, ...]]) -> Task:
    return Task(
        id=id,
        asked=tuple(asked for asked, _ in turns),
        gold=tuple(tuple(parse_call(call, PARAMETERS) for call in gold) for _, gold in turns),
        tools=tuple(map(tool, PARAMETERS)),
        systems={"Lamps": Lamps, "Safe": Safe},
        owners={"light": "Lamps", "count": "Lamps", "note": "Lamps", "knock": "Safe"},
    )


def _states_fit(run: Any, gold: Any) -> bool:
    return all(vars(run[name]) == vars(gold[name]) for name in gold)


def _results_fit(run: list[str], gold: list[str]) -> bool:
    return all(run.count(one) >= gold.count(one) for one in gold)


CHECKERS = Checkers(_states_fit, _results_fit)

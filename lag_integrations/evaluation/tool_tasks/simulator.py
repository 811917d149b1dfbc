"""Simulated systems: what the calls of one run do, and what comes of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lag_integrations.evaluation.tool_tasks.tasks import Task

_FAILED = "Error during execution: "
_MOST = {"exponent": 1_000, "precision": 1_000, "decimal_places": 1_000}
"""Arguments of BFCL's calculator that decide how long a call takes, and their limits."""


@dataclass(frozen=True)
class Result:
    """What came of a call.

    Attributes:
        text: What the model is told, as BFCL writes it.
        failed: Whether the call was refused, raised, or returned an error.
    """

    text: str
    failed: bool


class Simulator:
    """The systems of one run, in the state to which its calls brought them.

    A call is looked up among the task's tools, and nowhere else: what a model writes is never
    evaluated, and reaches no other method.

    Args:
        task: The task, whose systems are made anew.

    Attributes:
        systems: The systems, by name.
        results: The texts of all results so far.
    """

    def __init__(self, task: Task) -> None:
        self.systems: dict[str, Any] = {name: make() for name, make in task.systems.items()}
        self.results: list[str] = []
        self._owners = task.owners

    def call(self, name: str, args: Mapping[str, Any] | str) -> Result:
        """Carry out a call.

        Args:
            name: The tool.
            args: The arguments by name; a string is what could not be read, and refused.
        """
        result = self._carry_out(name, args)
        self.results.append(result.text)
        return result

    def _carry_out(self, name: str, args: Mapping[str, Any] | str) -> Result:
        if name not in self._owners:
            return refused(f"there is no tool {name!r}")
        if isinstance(args, str):
            return refused("the arguments are no JSON object")
        for argument, most in _MOST.items():
            value = args.get(argument)
            if isinstance(value, int | float) and not abs(value) <= most:
                return refused(f"{argument} must be at most {most}")
        method = getattr(self.systems[self._owners[name]], name)
        try:
            # A system may keep what it is given, and change it later.
            found = method(**copy.deepcopy(dict(args)))
            return Result(_as_text(found), isinstance(found, dict) and "error" in found)
        except Exception as error:  # anything: arguments may have any type
            return refused(str(error))


def refused(reason: str) -> Result:
    """Return the result of a call that was not carried out."""
    return Result(f"{_FAILED}{reason}", failed=True)


def _as_text(found: Any) -> str:
    if isinstance(found, str):
        return found
    if isinstance(found, dict):
        try:
            return json.dumps(found)
        except TypeError:  # it holds an object of the system
            return str(found)
    return str(found)

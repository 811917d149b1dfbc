"""Tasks of several turns that are done by calling tools, and the calls that do them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.errors import EvaluationError
from lag_integrations.traces.message import ToolCall


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        id: Its id.
        asked: What the user says, turn by turn.
        gold: The right calls of each turn.
        tools: The tools, in OpenAI's form.
        systems: What makes each simulated system anew, in its first state, by name.
        owners: Of each tool, the name of the system that has a method of that name.
    """

    id: str
    asked: tuple[str, ...]
    gold: tuple[tuple[ToolCall, ...], ...]
    tools: tuple[dict[str, Any], ...]
    systems: Mapping[str, Callable[[], Any]]
    owners: Mapping[str, str]

    def turn_id(self, turn: int) -> str:
        """Return the id of a turn, counted from 0."""
        return f"{self.id}/{turn}"


def parse_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """Return a call that is written in Python, all arguments by name.

    Nothing is executed: arguments must be literals.

    Args:
        text: The call, as in ``cd(folder='a')``.
        parameters: The names of each tool's parameters, in their order.

    Raises:
        EvaluationError: It is no such call, or one of no such tool.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is no call of a function")
        names = parameters[call.func.id]
        if len(call.args) > len(names) or any(one.arg is None for one in call.keywords):
            raise ValueError("its arguments have no names")
        args = {name: ast.literal_eval(one) for name, one in zip(names, call.args, strict=False)}
        args |= {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    except (KeyError, SyntaxError, ValueError) as error:
        raise EvaluationError(f"{text!r} cannot be read as a call of a tool ({error}).") from error
    return ToolCall(name=call.func.id, args=args)

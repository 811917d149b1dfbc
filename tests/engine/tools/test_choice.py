from __future__ import annotations

from typing import Any

import pytest

from lag_integrations.engine.tools import must_call, select
from lag_integrations.errors import PromptError, ToolChoiceError

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name}} for name in ("search", "prüfe")
]


@pytest.mark.parametrize("choice", [None, False, "auto", {"type": "auto"}])
def test_the_model_may_choose(choice: Any) -> None:
    assert select(TOOLS, choice) == TOOLS
    assert select([], choice) == []
    assert not must_call(choice)


@pytest.mark.parametrize("choice", [True, "any", "required", {"type": "any"}])
def test_the_model_must_choose(choice: Any) -> None:
    assert select(TOOLS, choice) == TOOLS
    assert must_call(choice)
    with pytest.raises(ToolChoiceError, match="no tools"):
        select([], choice)


@pytest.mark.parametrize("choice", ["none", {"type": "none"}])
def test_no_tool_may_be_called(choice: Any) -> None:
    assert select(TOOLS, choice) == []
    assert not must_call(choice)


@pytest.mark.parametrize(
    "choice",
    [
        "prüfe",
        {"type": "function", "function": {"name": "prüfe"}},
        {"type": "tool", "name": "prüfe"},
    ],
)
def test_a_tool_by_name(choice: Any) -> None:
    assert select(TOOLS, choice) == TOOLS[1:]
    assert must_call(choice)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ToolChoiceError, match=r"'serch'; known tools: 'search', 'prüfe'"):
        select(TOOLS, "serch")
    with pytest.raises(PromptError, match="known tools: none"):
        select([], "search")


@pytest.mark.parametrize("choice", [3, ["search"], {"function": {}}])
def test_a_choice_of_another_form_is_refused(choice: Any) -> None:
    with pytest.raises(ToolChoiceError, match="pass 'auto'"):
        select(TOOLS, choice)

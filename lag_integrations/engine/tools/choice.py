"""Which tools a request lets the model call, and whether it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.errors import ToolChoiceError

ToolChoice = str | bool | Mapping[str, Any] | None

_MUST = {"any", "required"}
_WORDS = {"auto", "none", *_MUST}


def select(tools: Sequence[dict[str, Any]], choice: ToolChoice) -> list[dict[str, Any]]:
    """Return the tools that may be called.

    Args:
        tools: All tools, in OpenAI's form.
        choice: ``"auto"`` (also None and False), ``"none"``, ``"any"`` or ``"required"`` (also
            True), the name of a tool, or ``{"type": "function", "function": {"name": …}}``.

    Raises:
        ToolChoiceError: The choice names no known tool, or asks for a call without any tools.
    """
    word = word_of(choice)
    if word == "none":
        return []
    if word in _WORDS:
        if word in _MUST and not tools:
            raise ToolChoiceError("tool_choice asks for a call, but there are no tools; pass some.")
        return list(tools)
    named = [tool for tool in tools if tool["function"]["name"] == word]
    if not named:
        known = ", ".join(repr(tool["function"]["name"]) for tool in tools) or "none"
        raise ToolChoiceError(f"tool_choice names the tool {word!r}; known tools: {known}.")
    return named


def must_call(choice: ToolChoice) -> bool:
    """Return whether the choice asks for a call, of any or of a certain tool."""
    return word_of(choice) not in _WORDS - _MUST


def word_of(choice: ToolChoice) -> str:
    """Return the choice as a name or one of the words."""
    if choice is True:
        return "any"
    if not choice:
        return "auto"
    if isinstance(choice, str):
        return choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        named = function if isinstance(function, Mapping) else choice
        word = named.get("name") or choice.get("type")
        if isinstance(word, str):
            return word
    raise ToolChoiceError(
        f"tool_choice is {choice!r}; pass 'auto', 'none', 'any', a tool's name, or "
        "{'type': 'function', 'function': {'name': …}}."
    )

"""Arguments that are written as plain text, for formats without types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lag_integrations.engine.tools.json_text import load
from lag_integrations.traces.message import ToolCall

_TYPES = {bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_PYTHON = {"True": True, "False": False, "None": None}


def written_args(call: ToolCall) -> dict[str, str]:
    """Write a call's arguments as text; those that were never read stay as they were, in one."""
    args = call.args if isinstance(call.args, dict) else {"arguments": call.args}
    return {name: write_value(value) for name, value in args.items()}


def write_value(value: Any) -> str:
    """Write a value as these formats do: strings as they are, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_value(text: str, tool: str, argument: str, tools: Sequence[dict[str, Any]]) -> Any:
    """Read a value from its text: of the type the tool's schema wants, or what it looks like."""
    parameters = _parameters(tool, tools)
    types = _types((parameters.get("properties") or {}).get(argument), parameters)
    if text.strip() in _PYTHON:
        value = _PYTHON[text.strip()]
    else:
        try:
            value = load(text)
        except ValueError:
            return text
    if isinstance(value, str):
        return text
    kind = _TYPES.get(type(value), "null")
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return text if "string" in types and not fits else value


def _parameters(tool: str, tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    for known in tools:
        function = known["function"]
        if function["name"] == tool:
            return function.get("parameters") or {}
    return {}


def _types(schema: Any, root: dict[str, Any], levels: int = 10) -> set[str]:
    """Return the types that a schema allows; an empty set if it does not say.

    Args:
        schema: The schema.
        root: What its references are relative to.
        levels: How deep to follow these, which may go in circles.
    """
    if not isinstance(schema, dict) or not levels:
        return set()
    if isinstance(reference := schema.get("$ref"), str):
        return _types(_referred(reference, root), root, levels - 1)
    written = schema.get("type", [])
    types = {written} if isinstance(written, str) else set(written)
    for options in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(options, []):
            types |= _types(option, root, levels - 1)
    if not types and all(isinstance(value, str) for value in schema.get("enum", [None])):
        return {"string"}
    return types


def _referred(reference: str, root: dict[str, Any]) -> Any:
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if reference.startswith("#/") else None

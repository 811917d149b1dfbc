"""Conversion of the messages of chat APIs and frameworks to `Message`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lag_integrations.errors import TraceError
from lag_integrations.traces.message import Message, Role, ToolCall
from lag_integrations.traces.storable import describe, storable

# What chat APIs and frameworks call the four roles.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "tool": "tool",
    "function": "tool",
    "chatbot": "assistant",
    "model": "assistant",
}
_ARGUMENTS_DEPTH = 10
"""Most levels that a trace has above the arguments of a call."""


def as_message(source: Any) -> Message:
    """Convert a message.

    Args:
        source: A dict of the usual chat form, a message of LangChain or LlamaIndex, or a
            `Message`.

    Raises:
        TraceError: It has no known role, or its content is malformed.
    """
    try:
        return _as_message(source)
    except ValidationError as error:
        raise TraceError(f"Not a valid message: {describe(error)}") from None
    except TypeError as error:
        raise TraceError(f"Not a valid message: {error}.") from None


def _as_message(source: Any) -> Message:
    if isinstance(source, Message):
        return source
    if hasattr(source, "additional_kwargs") and hasattr(source, "blocks"):
        source = _of_llama_index(source)
    if isinstance(source, Mapping):
        get = source.get
        role = source.get("role", source.get("type"))
    else:
        # LangChain messages, by shape: this module knows no framework.
        def get(name: str, default: Any = None) -> Any:
            return getattr(source, name, default)

        role = getattr(source, "type", None)
        if role == "chat":
            role = getattr(source, "role", None)
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(sorted(set(_ROLES.values())))
        raise TraceError(f"A message has the role {role!r}; known roles are {known}.")
    calls = [_tool_call(call) for call in get("tool_calls") or ()]
    for call in get("invalid_tool_calls") or ():
        calls.append(
            ToolCall(name=call.get("name") or "", args=call.get("args") or "", id=call.get("id"))
        )
    content = get("content")
    return Message.model_validate(
        {
            "role": _ROLES[role],
            "content": "" if content is None else content,
            "tool_calls": calls,
            "tool_call_id": get("tool_call_id"),
            "name": get("name"),
            "status": get("status") if _ROLES[role] == "tool" else None,
            "id": get("id"),
        }
    )


def _of_llama_index(source: Any) -> dict[str, Any]:
    """Convert a LlamaIndex message to a dict, by shape."""
    extra = source.additional_kwargs
    calls = [
        {"name": block.tool_name, "args": block.tool_kwargs, "id": block.tool_call_id}
        for block in source.blocks
        if block.block_type == "tool_call"
    ]
    return {
        "role": source.role.value,
        "content": source.content,
        "tool_calls": calls or extra.get("tool_calls"),
        "tool_call_id": extra.get("tool_call_id"),
        "name": extra.get("name"),
    }


def _tool_call(call: Any) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise TraceError(f"A tool call is a {type(call).__name__}; it must be a mapping.")
    function = call.get("function")
    if isinstance(function, Mapping):  # OpenAI's form, arguments as JSON text
        name, args = function.get("name"), function.get("arguments", {})
    else:
        name, args = call.get("name"), call.get("args", {})
    args = _arguments(args)
    return ToolCall.model_validate({"name": name, "args": args, "id": call.get("id")})


def _arguments(args: Any) -> Any:
    """Return arguments by name, or as text if they are no JSON object or cannot be stored."""
    try:
        if isinstance(args, str):
            parsed = json.loads(args)
            return storable(parsed, _ARGUMENTS_DEPTH) if isinstance(parsed, dict) else args
        return storable(args, _ARGUMENTS_DEPTH)
    except (ValueError, RecursionError):
        pass
    try:
        return args if isinstance(args, str) else json.dumps(args)
    except (TypeError, ValueError, RecursionError):
        return ""

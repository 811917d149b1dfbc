"""Messages as chat templates take them, and made to fit those that take less."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from lag_integrations.traces.message import Message, Role

ChatMessage = dict[str, Any]
"""A message as chat templates take it: ``role``, ``content``, optional ``tool_calls``…"""


class TemplateMessage(ChatMessage):
    """A message for a template.

    Attributes:
        origin: The role that it had before it was made to fit one.
        merged: How many messages it is made of.
    """

    origin: Role = "user"
    merged: int = 1


def merge_roles(chat: list[TemplateMessage]) -> list[TemplateMessage]:
    """Merge messages into alternating user and assistant turns."""
    merged: list[TemplateMessage] = []
    for turn in chat:
        role: Role = "assistant" if turn["role"] == "assistant" else "user"
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] += f"\n\n{turn['content']}"
            merged[-1].merged += turn.merged
        else:
            merged.append(TemplateMessage(role=role, content=turn["content"]))
            merged[-1].origin = "tool" if turn.origin == "tool" else role
        if turn.origin == "user":
            merged[-1].origin = "user"
    if merged[0]["role"] == "assistant":
        merged.insert(0, TemplateMessage(role="user", content=""))
        merged[0].merged = 0
    return merged


def with_system_text(messages: Sequence[Message], text: str) -> list[Message]:
    """Return the conversation with a text at the end of its system message, made if missing."""
    first, *rest = messages if messages else [None]
    if first is None or first.role != "system":
        return [Message(role="system", content=text), *messages]
    content = (
        f"{first.content}\n\n{text}"
        if isinstance(first.content, str)
        else [*first.content, {"type": "text", "text": f"\n\n{text}"}]
    )
    return [first.model_copy(update={"content": content}), *rest]


def without_mark(value: Any, mark: str) -> Any:
    """Return a turn or tool without the marks of `control_tokens`."""
    if isinstance(value, str):
        return value.replace(mark, "")
    if isinstance(value, dict):
        found = {without_mark(key, mark): without_mark(one, mark) for key, one in value.items()}
        if isinstance(value, TemplateMessage):
            turn = TemplateMessage(found)
            turn.origin, turn.merged = value.origin, value.merged
            return turn
        return found
    if isinstance(value, list | tuple):
        return [without_mark(one, mark) for one in value]
    return value


def short_id(call_id: str | None) -> str:
    """Return a call's id as nine letters and digits: Mistral's templates refuse any other."""
    if call_id is not None and len(call_id) == 9 and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.blake2b((call_id or "").encode()).hexdigest()[:9]

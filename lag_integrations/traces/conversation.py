"""Earlier turns of a conversation: which of them are kept with a run, and searched by."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations.traces.message import Message

_MAX_MESSAGES = 6
_MAX_CHARACTERS = 8_000
_MAX_QUERY_CHARACTERS = 500
"""Of the previous message: embedders read some hundred words, and the newest count."""


def earlier_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the last texts of users and assistants, in order, beginning with a user's.

    Args:
        messages: The conversation before the run.
    """
    kept: list[Message] = []
    characters = 0
    for message in reversed(messages):
        if message.role not in ("user", "assistant") or not message.text.strip():
            continue
        characters += len(message.text)
        if len(kept) == _MAX_MESSAGES or characters > _MAX_CHARACTERS:
            break
        kept.append(Message(role=message.role, content=message.text))
    while kept and kept[-1].role != "user":
        kept.pop()
    return tuple(reversed(kept))


def follow_up(text: str, before: str) -> str:
    """Return a query that holds the previous user message and the new one.

    "And how much does it cost?" can only be searched with what was said before.
    """
    return f"{before[:_MAX_QUERY_CHARACTERS]}\n{text}"


def last_two(said: Sequence[str]) -> tuple[str, str | None]:
    """Return the last user message that is not blank, and the one before it.

    Args:
        said: The user's messages, in order.

    Returns:
        The last message, or ``""``; and the previous one, or None.
    """
    *earlier, last = [text for text in said if text.strip()] or [""]
    return last, earlier[-1] if earlier else None

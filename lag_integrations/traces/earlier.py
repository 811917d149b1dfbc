"""The turns of a conversation that came before a run."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations.traces.trace import Message

_MOST_MESSAGES = 6
_MOST_CHARACTERS = 8_000
"""What of a long conversation is kept with each of its turns."""


def earlier_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return what users and assistants said last, in order; what else there is, is left out.

    Args:
        messages: The conversation before the run.
    """
    kept: list[Message] = []
    characters = 0
    for message in reversed(messages):
        if message.role not in ("user", "assistant") or not message.text.strip():
            continue
        characters += len(message.text)
        if len(kept) == _MOST_MESSAGES or characters > _MOST_CHARACTERS:
            break
        kept.append(Message(role=message.role, content=message.text))
    while kept and kept[-1].role != "user":
        kept.pop()
    return tuple(reversed(kept))

"""What an answer holds: text, calls, and calls that cannot be read; whole, or event by event."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from lag_integrations.traces.message import ToolCall


def new_call_id() -> str:
    """Make an id for a call: nine letters and digits, on which Mistral's templates insist."""
    return uuid4().hex[:9]


@dataclass(frozen=True)
class InvalidCall:
    """A call that the model began, but that cannot be read.

    Attributes:
        name: Name of the tool, where it can be told.
        args: What the model wrote, as it is.
        error: What is wrong with it.
    """

    name: str | None
    args: str
    error: str


@dataclass(frozen=True)
class Text:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class CallEnded:
    """A call is complete; calls of an answer, unreadable ones included, count from 0."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CallFailed:
    """A call cannot be read."""

    index: int
    invalid: InvalidCall


Event = Text | CallEnded | CallFailed


@dataclass(frozen=True)
class Block:
    """What a format found at the beginning of a text.

    Attributes:
        length: How many characters it takes.
        calls: The calls in it.
        is_text: It only looked like a call, and is text.
    """

    length: int
    calls: tuple[ToolCall | InvalidCall, ...] = ()
    is_text: bool = False

"""What an answer holds: text, calls, and calls that cannot be read; whole, or event by event."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

from lag_integrations.traces.trace import ToolCall


def new_call_id() -> str:
    """An id for a call: nine letters and digits, on which Mistral's templates insist."""
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
class ParsedAnswer:
    """An answer taken apart.

    Attributes:
        text: The text around the calls. White space that touches a call is dropped; what stood
            before and after a call is joined by a line break.
        calls: The calls, in order, without ids.
        invalid: The calls that cannot be read.
    """

    text: str
    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidCall, ...]


@dataclass(frozen=True)
class Text:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A call of a tool begins; calls of an answer, unreadable ones included, count from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArgs:
    """More of a call's arguments, as JSON text."""

    index: int
    fragment: str


@dataclass(frozen=True)
class CallEnded:
    """A call is complete."""

    index: int
    call: ToolCall


@dataclass(frozen=True)
class CallFailed:
    """A call cannot be read; no `CallStarted` came before."""

    index: int
    invalid: InvalidCall


Event = Text | CallStarted | CallArgs | CallEnded | CallFailed


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

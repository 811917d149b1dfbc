"""Whole answers, taken apart as they are piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools import (
    AnswerReader,
    CallEnded,
    CallFailed,
    InvalidCall,
    Text,
    ToolFormat,
)
from lag_integrations.traces.message import ToolCall


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


def parse(format: ToolFormat, text: str, tools: Sequence[dict[str, Any]] = ()) -> ParsedAnswer:
    reader = AnswerReader(format, tools)
    events = reader.feed(text) + reader.finish()
    return ParsedAnswer(
        text="".join(event.text for event in events if isinstance(event, Text)),
        calls=tuple(event.call for event in events if isinstance(event, CallEnded)),
        invalid=tuple(event.invalid for event in events if isinstance(event, CallFailed)),
    )

"""Takes an answer apart while it is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lag_integrations.engine.tools.events import (
    Block,
    CallEnded,
    CallFailed,
    Event,
    InvalidCall,
    Text,
)
from lag_integrations.engine.tools.format import ToolFormat
from lag_integrations.engine.tools.unmarked import read_alone
from lag_integrations.traces.message import ToolCall


class AnswerReader:
    """Reads an answer piece by piece; pieces of any size give the same in the end.

    An answer that is nothing but calls of the tools as JSON (see `read_alone`) is held back until
    it is complete. In any other, the calls are those that the format marks.

    Args:
        format: How the model writes calls.
        tools: The tools it may call.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[dict[str, Any]] = ()) -> None:
        self._marked = MarkReader(format, tools)
        self._tools = tools
        self._held: str | None = "" if tools else None  # None: there are marked calls at most

    def feed(self, piece: str) -> list[Event]:
        """Take the next piece of the answer.

        Returns:
            What is certain now.
        """
        if self._held is None:
            return self._marked.feed(piece)
        self._held += piece
        return self._read_held(self._held, final=False)

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Take the end of the answer, which is complete, or cut off for length.

        Returns:
            What had been held back; a call that is not complete has failed. The beginning of a
            mark, at which the answer was cut off, is left out.
        """
        events = [] if self._held is None else self._read_held(self._held, final=True)
        return events + self._marked.finish(cut_off=cut_off)

    def _read_held(self, text: str, final: bool) -> list[Event]:
        block = read_alone(text, self._tools, final)
        if block is None:
            return []
        self._held = None
        return self._marked.feed(text) if block.is_text else _events_of(block.calls, 0)


class MarkReader:
    """Reads the calls that a format marks, piece by piece, amid text.

    Text is passed on as soon as it cannot be the beginning of a call (white space waits until it
    is known what follows); a call is passed on once it is complete.

    Args:
        format: How the model writes calls.
        tools: The tools it may call: formats without types need their schemas to tell ``"12"``
            from ``12``.
    """

    def __init__(self, format: ToolFormat, tools: Sequence[dict[str, Any]] = ()) -> None:
        self._format = format
        self._tools = tools
        starts = format.starts()
        self._start = re.compile("|".join(map(re.escape, starts)))
        self._beginnings = {start[:end] for start in starts for end in range(1, len(start))}
        self._longest = max(map(len, starts))
        self._buffer = ""
        self._space = ""
        self._spoke = False
        self._after_call = False
        self._calls = 0

    def feed(self, piece: str) -> list[Event]:
        """Take the next piece of the answer.

        Returns:
            What is certain now.
        """
        self._buffer += piece
        return self._read(final=False)

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Take the end of the answer, which is complete, or cut off for length.

        Returns:
            What had been held back; a call that is not complete has failed. The beginning of a
            mark, at which the answer was cut off, is left out.
        """
        if cut_off and len(self._buffer) > 1 and self._buffer in self._beginnings:
            self._buffer = self._space = ""  # a single "<" may as well be text
        events = self._read(final=True)
        if self._space and not self._after_call:
            events.append(Text(self._space))
        return events

    def _read(self, final: bool) -> list[Event]:
        events: list[Event] = []
        while self._buffer:
            start = self._start.search(self._buffer)
            if start is None:
                held = len(self._buffer) if final else self._held_from()
                events += self._say(self._buffer[:held])
                self._buffer = self._buffer[held:]
                break
            events += self._say(self._buffer[: start.start()])
            self._buffer = self._buffer[start.start() :]
            block = self._format.read(self._buffer, self._tools, final)
            if block is None:
                break
            events += self._pass_on(block)
            self._buffer = self._buffer[block.length :]
        return events

    def _held_from(self) -> int:
        """Find where in the buffer a call may begin that is not there in full."""
        length = len(self._buffer)
        for begin in range(max(0, length - self._longest), length):
            if self._buffer[begin:] in self._beginnings:
                return begin
        return length

    def _say(self, text: str) -> list[Event]:
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if not said:
            return []
        if self._after_call:
            said = ("\n" if self._spoke else "") + said.lstrip()
        self._after_call = False
        self._spoke = True
        return [Text(said)]

    def _pass_on(self, block: Block) -> list[Event]:
        if block.is_text:
            return self._say(self._buffer[: block.length])
        self._after_call = True
        first = self._calls
        self._calls += len(block.calls)
        return _events_of(block.calls, first)


def _events_of(calls: Sequence[ToolCall | InvalidCall], first: int) -> list[Event]:
    """Return the events of whole calls; the first has this index."""
    events: list[Event] = []
    for index, call in enumerate(calls, first):
        if isinstance(call, InvalidCall):
            events.append(CallFailed(index, call))
        else:
            events.append(CallEnded(index, call))
    return events

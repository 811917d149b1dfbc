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
from lag_integrations.engine.tools.held_text import HeldText, Reading, result_of
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
        self._held = HeldText()
        # None: there are marked calls at most.
        self._alone = read_alone(self._held, tools) if tools else None

    def feed(self, piece: str) -> list[Event]:
        """Take the next piece of the answer.

        Returns:
            What is certain now.
        """
        if self._alone is None:
            return self._marked.feed(piece)
        self._held.text += piece
        return self._read_alone(self._alone)

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Take the end of the answer, which is complete, or cut off for length.

        Returns:
            What had been held back; a call that is not complete has failed. The beginning of a
            mark, at which the answer was cut off, is left out.
        """
        self._held.is_whole = True
        events = [] if self._alone is None else self._read_alone(self._alone)
        return events + self._marked.finish(cut_off=cut_off)

    def _read_alone(self, reading: Reading[Block]) -> list[Event]:
        block = result_of(reading)
        if block is None:
            return []
        self._alone = None
        return self._marked.feed(self._held.text) if block.is_text else _events_of(block.calls, 0)


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
        self._held = HeldText()
        self._reading: Reading[Block] | None = None  # of the call with which the text begins
        self._space = ""
        self._spoke = False
        self._after_call = False
        self._calls = 0

    def feed(self, piece: str) -> list[Event]:
        """Take the next piece of the answer.

        Returns:
            What is certain now.
        """
        self._held.text += piece
        return self._read()

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """Take the end of the answer, which is complete, or cut off for length.

        Returns:
            What had been held back; a call that is not complete has failed. The beginning of a
            mark, at which the answer was cut off, is left out.
        """
        if cut_off and len(self._held.text) > 1 and self._held.text in self._beginnings:
            self._held.text = self._space = ""  # a single "<" may as well be text
        self._held.is_whole = True
        events = self._read()
        if self._space and not self._after_call:
            events.append(Text(self._space))
        return events

    def _read(self) -> list[Event]:
        events: list[Event] = []
        while self._held.text:
            if self._reading is None:
                start = self._start.search(self._held.text)
                events += self._say(self._take(start.start() if start else self._held_from()))
                if start is None:
                    break
                self._reading = self._format.read(self._held, self._tools)
            block = result_of(self._reading)
            if block is None:
                break
            self._reading = None
            events += self._pass_on(block)
        return events

    def _take(self, length: int) -> str:
        """Take the beginning of the text, which is not held any more."""
        taken, self._held.text = self._held.text[:length], self._held.text[length:]
        return taken

    def _held_from(self) -> int:
        """Find where in the text a call may begin that is not there in full."""
        text = self._held.text
        length = len(text)
        if not self._held.is_whole:
            for begin in range(max(0, length - self._longest), length):
                if text[begin:] in self._beginnings:
                    return begin
        return length

    def _say(self, text: str) -> list[Event]:
        said = text.rstrip()
        if not said:
            self._space += text
            return []
        said, self._space = self._space + said, text[len(said) :]
        if self._after_call:
            said = ("\n" if self._spoke else "") + said.lstrip()
        self._after_call = False
        self._spoke = True
        return [Text(said)]

    def _pass_on(self, block: Block) -> list[Event]:
        text = self._take(block.length)
        if block.is_text:
            return self._say(text)
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

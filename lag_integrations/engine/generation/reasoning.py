"""The split of a reasoning model's answer: what it thinks, and what it says.

Most models think between ``<think>`` and ``</think>``; gpt-oss answers in channels (harmony).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More of the answer."""

    text: str


class Splitter(ABC):
    """Splits an answer piece by piece."""

    _buffer = ""

    def feed(self, piece: str) -> list[ReasoningDelta | TextDelta]:
        """Take the next piece, and return what is certain now."""
        self._buffer += piece
        return self._read(final=False)

    def finish(self) -> list[ReasoningDelta | TextDelta]:
        """Return what had been held back, since the answer is complete."""
        return self._read(final=True)

    @abstractmethod
    def _read(self, final: bool) -> list[ReasoningDelta | TextDelta]:
        """Take from the buffer what is certain."""


class ReasoningReader(Splitter):
    """Splits an answer by ``<think>`` and ``</think>``.

    Args:
        opened: The prompt ended with ``<think>``, so the answer begins inside.
    """

    def __init__(self, opened: bool) -> None:
        self._thinking: bool | None = True if opened else None  # None: not known yet
        self._fresh = True  # white space after a mark belongs to neither

    def _read(self, final: bool) -> list[ReasoningDelta | TextDelta]:
        parts: list[ReasoningDelta | TextDelta] = []
        if self._thinking is None:
            begun = self._buffer.lstrip()
            if begun.startswith(OPEN):
                self._thinking, self._buffer = True, begun[len(OPEN) :]
            elif final or not OPEN.startswith(begun):
                self._thinking, self._fresh = False, False
        if self._thinking:
            thought, found, rest = self._buffer.partition(CLOSE)
            if not found and not final:
                partial = max(n for n in range(len(CLOSE)) if thought.endswith(CLOSE[:n]))
                certain = len(thought[: len(thought) - partial].rstrip())
                thought, rest = thought[:certain], thought[certain:]
            elif found:
                thought = thought.rstrip()
            if self._fresh:
                thought = thought.lstrip()
            if thought:
                self._fresh = False
                parts.append(ReasoningDelta(thought))
            self._buffer = rest
            if found:
                self._thinking, self._fresh = False, True
        if self._thinking is False:
            said = self._buffer.lstrip() if self._fresh else self._buffer
            self._buffer = ""
            if said:
                self._fresh = False
                parts.append(TextDelta(said))
        return parts


_START, _MESSAGE = "<|start|>", "<|message|>"
_HEADER = ("<|start|>", "<|channel|>", " to=")
_ENDS = ("<|end|>", "<|call|>", "<|return|>", _START)
_END = re.compile("|".join(map(re.escape, _ENDS)))


class ChannelReader(Splitter):
    """Splits an answer by its channels.

    The channel ``analysis`` is thought, the others are said. A message to a function stays as it
    is written, for whoever reads the calls.
    """

    def __init__(self) -> None:
        self._inside: Literal["header", "thought", "said", "call"] = "header"
        self._spoke: set[type] = set()
        self._apart = False  # a message begins, so it stands apart from the last one

    def _read(self, final: bool) -> list[ReasoningDelta | TextDelta]:
        parts: list[ReasoningDelta | TextDelta] = []
        while self._buffer:
            went_on = self._header(parts, final) if self._inside == "header" else self._body(parts)
            if not went_on:
                break
        if final and self._inside != "header":
            self._give(parts, self._buffer)
            self._buffer = ""
        return parts

    def _header(self, parts: list[ReasoningDelta | TextDelta], final: bool) -> bool:
        header, found, rest = self._buffer.partition(_MESSAGE)
        if not any(mark.startswith(header[: len(mark)]) for mark in _HEADER):
            self._inside, self._apart = "said", True  # an answer without channels
            return True
        if not found:
            if final:  # cut off: nothing was said, unless it was to be a call
                self._inside = "call"
                self._give(parts, header if "to=" in header else "")
                self._buffer = ""
            return False
        self._buffer, self._apart = rest, True
        if "to=" in header:
            self._inside = "call"
            self._give(parts, header.removeprefix(_START).removeprefix("assistant") + found)
        else:
            self._inside = "thought" if "analysis" in header else "said"
        return True

    def _body(self, parts: list[ReasoningDelta | TextDelta]) -> bool:
        end = _END.search(self._buffer)
        if end is None:
            certain = self._buffer.rfind("<", -len(max(_ENDS, key=len)))
            if certain < 0 or not any(e.startswith(self._buffer[certain:]) for e in _ENDS):
                certain = len(self._buffer)
            self._give(parts, self._buffer[:certain])
            self._buffer = self._buffer[certain:]
            return False
        self._give(parts, self._buffer[: end.start()])
        self._buffer = self._buffer[end.start() :]
        if end.group() != _START:
            if self._inside == "call":
                self._give(parts, end.group())
            self._buffer = self._buffer[len(end.group()) :]
        self._inside = "header"
        return True

    def _give(self, parts: list[ReasoningDelta | TextDelta], text: str) -> None:
        if not text:
            return
        kind = ReasoningDelta if self._inside == "thought" else TextDelta
        if self._apart and kind in self._spoke and self._inside != "call":
            text = f"\n{text}"
        self._apart = False
        if self._inside != "call":
            self._spoke.add(kind)
        parts.append(kind(text))

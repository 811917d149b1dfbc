"""Answers with tool calls: the same in pieces as whole, no errors, in little time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Any

from lag_integrations.engine.tools import AnswerReader, CallEnded, CallFailed, Event, ToolFormat
from lag_integrations.traces.message import ToolCall
from tests.engine.tools.formats import FORMATS, MARKS, whole
from tests.engine.tools.parsing import parse

WORDS = (
    *filter(None, MARKS),
    *("\0", '"arguments": {', "'name': 'f'", "'args': {", "}}", "]]", '\\"', "call:f{a:"),
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "string"},
                    "b": {"type": ["integer", "null"]},
                    "c": {},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "g"}},
]
REPEATS = (1, 1, 1, 1, 1, 7, 300, 10_000)
LONGEST = 20_000
"""Characters of a text, with what is repeated in it."""
PIECES = 4
LETTERS = 300
"""Characters up to which a text is also read letter by letter."""
SECONDS = 6.0 if "atheris" in sys.modules else 1.0
"""Of computing for the longest text, in however many pieces; instrumented code takes six times as
long."""
KNOWN, CUT_OFF = 1, 2
"""In an input's second byte: tools are given; the answer was cut off for length."""
FORMS = tuple(FORMATS.values())


def seeds() -> Iterator[bytes]:
    one = ToolCall(name="f", args={"a": "x", "b": 1, "c": {"d": [1, "{"]}})
    other = ToolCall(name="g", args={})
    for number, form in enumerate(FORMS):
        for text in (
            form.write([one]),
            f"So: {form.write([one, other])} it is.",
            form.write([one])[:-9],
            f"```json\n{json.dumps({'name': 'f', 'arguments': one.args})}\n```",
            form.write([ToolCall(name="f", args={"c": 123456})]).replace("123456", "\0[\0"),
        ):
            for flags in (0, KNOWN, KNOWN | CUT_OFF):
                for repeats in (0, 5, 6, 7):
                    yield bytes([number, flags, repeats, 1]) + text.encode()


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    yield check


def check(data: bytes) -> None:
    """An input's first bytes are format, flags, how often the middle is repeated, and the cuts."""
    form, flags, repeats, cuts = (*data[:4], *bytes(4))[:4]
    format, known = FORMS[form % len(FORMS)], TOOLS if flags & KNOWN else []
    cut_off = bool(flags & CUT_OFF)
    head, _, rest = data[4:].decode("utf-8", "replace").partition("\0")
    middle, _, tail = rest.partition("\0")
    most = LONGEST // max(len(middle), 1)
    text = head + middle * min(REPEATS[repeats % len(REPEATS)], most) + tail
    expected = read(format, known, [text], cut_off)
    places = Random(cuts).sample(range(len(text)), min(PIECES, len(text)))
    bounds = [0, *sorted(places), len(text)]
    assert read(format, known, [text[a:b] for a, b in pairwise(bounds)], cut_off) == expected
    if len(text) <= LETTERS:
        assert read(format, known, text, cut_off) == expected
    if cut_off:
        return
    answer = parse(format, text, known)
    assert answer.text == expected[0]
    assert answer.calls == tuple(e.call for e in expected[1] if isinstance(e, CallEnded))
    assert answer.invalid == tuple(e.invalid for e in expected[1] if isinstance(e, CallFailed))
    format.write(answer.calls)


def read(
    format: ToolFormat, tools: Sequence[dict[str, Any]], pieces: Sequence[str], cut_off: bool
) -> Any:
    reader = AnswerReader(format, tools)
    begin = time.process_time()
    events: list[Event] = [event for piece in pieces for event in reader.feed(piece)]
    events += reader.finish(cut_off=cut_off)
    took = time.process_time() - begin
    assert took < SECONDS, f"{len(pieces)} pieces of a text took {took:.1f} s"
    return whole(events)

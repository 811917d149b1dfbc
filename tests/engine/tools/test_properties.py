from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lag_integrations.engine.tools import (
    HERMES,
    AnswerReader,
    CallEnded,
    CallFailed,
    ToolFormat,
)
from lag_integrations.traces.message import ToolCall
from tests.engine.tools.formats import FORMATS, MARKS, whole
from tests.engine.tools.parsing import parse

# Where an argument is not JSON, the text that ends it cannot stand in it.
RESERVED = {
    "qwen_xml": ("</parameter>", "</function>", "</tool_call>"),
    "glm": ("</arg_value>", "</tool_call>"),
    "gemma": ('<|"|>', "<tool_call|>"),
}

words = st.text(max_size=12) | st.sampled_from(MARKS)
names = st.from_regex(r"[^\W\d]\w{0,12}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner | words, max_size=3) | st.dictionaries(names, inner | words, max_size=3)
    ),
    max_leaves=6,
)
calls = st.builds(
    ToolCall, name=names, args=st.dictionaries(names, values | words, max_size=3), id=st.none()
)


def tools_of(calls: list[ToolCall]) -> list[dict[str, Any]]:
    """Tools whose string arguments are declared as such."""
    tools = []
    for call in calls:
        assert isinstance(call.args, dict)
        properties = {
            name: {"type": "string"} if isinstance(value, str) else {}
            for name, value in call.args.items()
        }
        parameters = {"type": "object", "properties": properties}
        tools.append(
            {"type": "function", "function": {"name": call.name, "parameters": parameters}}
        )
    return tools


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@settings(max_examples=20, deadline=None)
@given(asked=st.lists(calls, min_size=1, max_size=3, unique_by=lambda call: call.name))
def test_what_is_written_is_read(form: ToolFormat, asked: list[ToolCall]) -> None:
    text = form.write(asked)
    written = json.dumps([call.args for call in asked], ensure_ascii=False)
    assume(not any(json.dumps(mark)[1:-1] in written for mark in RESERVED.get(form.name, ())))

    answer = parse(form, text, tools_of(asked))

    assert answer.calls == tuple(asked)
    assert answer.invalid == ()
    assert answer.text == ""


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(words | st.lists(calls, min_size=1, max_size=2), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_pieces_of_any_size_give_the_same(
    form: ToolFormat, parts: list[str | list[ToolCall]], cuts: list[int]
) -> None:
    text = "".join(part if isinstance(part, str) else form.write(part) for part in parts)
    one = AnswerReader(form)
    expected = whole(one.feed(text) + one.finish())
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for pieces in (list(text), [text[a:b] for a, b in pairwise(bounds)]):
        reader = AnswerReader(form)
        events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
        assert whole(events) == expected
    answer = parse(form, text)
    ended = [event.call for event in expected[1] if isinstance(event, CallEnded)]
    failed = [event.invalid for event in expected[1] if isinstance(event, CallFailed)]
    assert (answer.text, list(answer.calls), list(answer.invalid)) == (expected[0], ended, failed)


BOUND: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}}}}},
    {"type": "function", "function": {"name": "g"}},
]
BARE = [
    *('{"name": "f", "arguments": {"a": "}"}}', '{"name": "g", "parameters": {}}'),
    *('{"name": "f", "arguments": {"b": 1}}', '{"name": "h", "arguments": {}}', '{"name": "f"'),
    *('{"call": {"name": "f", "arguments": {}}}', "{'name': 'f', 'args': {}}", '{"name": "f"}'),
    *("[", "]", ",", ";", "}", "```json\n", "```", "`", " ", "\n", "So", "<tool_call>", "{", '"'),
]


@pytest.mark.parametrize("form", [FORMATS["qwen"], FORMATS["llama"]], ids=["qwen", "llama"])
@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.sampled_from(BARE), min_size=1, max_size=7),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_pieces_of_an_answer_without_marks_give_the_same(
    form: ToolFormat, parts: list[str], cuts: list[int]
) -> None:
    text = "".join(parts)
    one = AnswerReader(form, BOUND)
    expected = whole(one.feed(text) + one.finish())
    bounds = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for pieces in (list(text), [text[a:b] for a, b in pairwise(bounds)]):
        reader = AnswerReader(form, BOUND)
        events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
        assert whole(events) == expected


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@settings(max_examples=15, deadline=None)
@given(text=st.text(max_size=80))
def test_text_without_calls_stays_as_it_is(form: ToolFormat, text: str) -> None:
    assume(not any(start in text for start in form.starts()))

    answer = parse(form, text)

    assert (answer.text, answer.calls, answer.invalid) == (text, (), ())


LIST_IN_LISTS = json.loads("[" * 95 + "1" + "]" * 95)


@pytest.mark.parametrize("value", [10**4_000, LIST_IN_LISTS], ids=["long", "deep"])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
def test_what_no_trace_can_hold_is_read_without_an_error(form: ToolFormat, value: Any) -> None:
    text = form.write([ToolCall.model_construct(name="f", args={"a": value})])

    answer = parse(form, text)

    if answer.invalid:
        assert answer.invalid[0].name == "f"
    else:  # a format without types
        assert answer.calls == (ToolCall(name="f", args={"a": json.dumps(value)}),)


CALL = '{"name": "f", "arguments": {"a": 1}}'
ITEMS = [{"b": 1}] * 1_000


@pytest.mark.parametrize(
    ("form", "text"),
    [
        *(
            (form, form.write([ToolCall(name="f", args={"a": ITEMS * 3})]))
            for form in FORMATS.values()
        ),
        (HERMES, json.dumps({"name": "f", "arguments": {"a": ITEMS * 3}})),
        (HERMES, json.dumps({"name": "f", "arguments": {"a": ITEMS}}) + " " * 10_000),
        (HERMES, CALL * 800),
        (HERMES, f"<tool_call>{CALL * 800}</tool_call>"),
        (HERMES, json.dumps(ITEMS * 3)),
    ],
    ids=[*FORMATS, "alone", "space after", "many alone", "many in one", "other JSON"],
)
def test_a_call_in_small_pieces_is_read_once(form: ToolFormat, text: str) -> None:
    reader = AnswerReader(form, BOUND)
    begin = time.process_time()
    events = [event for at in range(0, len(text), 4) for event in reader.feed(text[at : at + 4])]
    events += reader.finish()
    took = time.process_time() - begin

    one = AnswerReader(form, BOUND)
    assert whole(events) == whole(one.feed(text) + one.finish())
    # As long as the square of the length would take, it is minutes; a slow machine takes 2 s.
    assert took < 10, f"{len(text)} characters took {took:.1f} s"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (HERMES, '<tool_call>{"</tool_call>"' * 4_000),
        (HERMES, '<tool_call>{ \\"</tool_call>' * 4_000),
        (FORMATS["gemma"], '\\</tool_call><tool_call>["\\"' * 4_000),
        (FORMATS["functionary"], "<function=" * 20_000),
        (HERMES, "{" + '"name": "f" ' * 8_000),
    ],
    ids=["closers in strings", "one string", "closers in others' strings", "no more", "names"],
)
def test_many_calls_that_are_left_open_are_each_read_up_to_their_end(
    form: ToolFormat, text: str
) -> None:
    reader = AnswerReader(form, BOUND)
    begin = time.process_time()
    reader.feed(text)
    reader.finish()
    took = time.process_time() - begin

    # As long as the square of the length would take, it is minutes; a slow machine takes 2 s.
    assert took < 10, f"{len(text)} characters took {took:.1f} s"


@settings(max_examples=50, deadline=None)
@given(asked=st.lists(calls, min_size=1, max_size=3))
def test_events_of_a_call_come_in_order(asked: list[ToolCall]) -> None:
    reader = AnswerReader(HERMES)
    events = [event for piece in HERMES.write(asked) for event in reader.feed(piece)]
    events += reader.finish()

    assert events == [CallEnded(index, call) for index, call in enumerate(asked)]

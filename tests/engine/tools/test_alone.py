"""Answers that are nothing but calls, as JSON without a mark."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lag_integrations.engine.tools import (
    HERMES,
    AnswerReader,
    CallEnded,
    CallFailed,
    InvalidCall,
    Text,
    ToolFormat,
    learn_tool_format,
)
from lag_integrations.engine.tools.json_format import LLAMA
from lag_integrations.traces.message import ToolCall
from tests.engine.tools.parsing import parse
from tests.engine.tools.templates import ALL, applier

NAMES = ("qwen", "llama", "mistral_named", "granite", "qwen_coder", "glm", "harmony", "gemma")
FORMATS = {name: learn_tool_format(applier(ALL[name])) for name in NAMES}
PLACE = {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}


def tool(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool(
        "weather",
        ["city"],
        city={"type": "string"},
        days={"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        unit={"enum": ["C", "F"]},
        places={"type": "array", "items": PLACE},
    ),
    {"type": "function", "function": {"name": "now"}},
]
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
NOW = '{"name": "now", "arguments": {}}'
CITY, CLOCK = ToolCall(name="weather", args={"city": "Köln"}), ToolCall(name="now")


def weather(**args: Any) -> str:
    return json.dumps({"name": "weather", "arguments": {"city": "Köln", **args}})


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, [CITY]),
        (f" \n{CALL}\n\n", [CITY]),
        (f"{{{CALL}}}", [CITY]),  # as Qwen2.5-Coder's template shows it
        (f"{{{CALL}", [CITY]),
        (f"```json\n{{{CALL}}}\n```", [CITY]),
        (f"{{{CALL}}}\n{{{NOW}}}", [CITY, CLOCK]),
        (f"```json\n{CALL}\n```", [CITY]),
        (f"\n``` {CALL}```\n", [CITY]),
        (f"```json\n{CALL}", [CITY]),
        (f"[{CALL}]", [CITY]),
        (f"```json\n[\n  {CALL},\n  {NOW}\n]\n```", [CITY, CLOCK]),
        (f"{CALL}\n{NOW}\n{CALL}", [CITY, CLOCK, CITY]),
        (f"{CALL}; {NOW}", [CITY, CLOCK]),
        (f"{CALL},\n{NOW}", [CITY, CLOCK]),
        (f"```\n{CALL}\n{NOW}\n```", [CITY, CLOCK]),
        ('{"name": "weather", "parameters": {"city": "Köln"}}', [CITY]),
        ('{"arguments": {"city": "Köln"}, "name": "weather"}', [CITY]),
        (f'{{"type": "function", "function": {CALL}}}', [CITY]),
        (
            '{"type": "function", "function": '
            '{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}}',
            [CITY],
        ),
        (
            weather(days=3, unit="C", places=[{"lat": 1.5}]),
            [
                ToolCall(
                    name="weather",
                    args={"city": "Köln", "days": 3, "unit": "C", "places": [{"lat": 1.5}]},
                )
            ],
        ),
    ],
)
def test_an_answer_that_is_nothing_but_calls(
    form: ToolFormat, text: str, calls: list[ToolCall]
) -> None:
    answer = parse(form, text, TOOLS)

    assert answer.calls == tuple(calls)
    assert (answer.text, answer.invalid) == ("", ())


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        '{"name": "Ada", "arguments": {"city": "Köln"}}',
        '{"name": "weather", "description": "It tells the weather."}',
        '{"name": "weather"}',
        '{"city": "Köln"}',
        "{}",
        "[]",
        "[1, 2]",
        "{% if weather %} rain {% endif %}",
        '```json\n{"name": "Ada", "age": 36}\n```',
        "```python\nprint(1)\n```",
        "```",
        "",
        " \n",
        f'[{CALL}, {{"name": "Ada", "arguments": {{}}}}]',
        '{"name": "wea',
        '{"name": Ada, "arguments": {}}',
    ],
)
def test_any_other_json_is_text(form: ToolFormat, text: str) -> None:
    answer = parse(form, text, TOOLS)

    assert (answer.text, answer.calls, answer.invalid) == (text, (), ())


# Llama's own form is JSON without a mark, in whatever it stands.
MARKED = [form for form in FORMATS.values() if form.name != "llama"]


@pytest.mark.parametrize("form", MARKED, ids=lambda form: form.name)
@pytest.mark.parametrize(
    "text",
    [
        f"I call it: {CALL}",
        f"{CALL}\nThat is what I would call.",
        f"```json\n{CALL}\n```\nThis asks for the weather.",
        f"```json\n{CALL}\n```\n```json\n{CALL}\n```",
        f"{CALL} and {CALL}",
        f"{CALL}\n```",
        f"[{CALL}] [{CALL}]",
        f"[[{CALL}]]",
        '{"calls": [' + CALL + "]}",
        f'{CALL}\n{{"name": "Ada", "age": 36}}',
        '{"call": {"name": "weather", "arguments": {}}}',
        '{"call": {"name": "weather", "arguments": {}}}}',
    ],
)
def test_json_amid_something_else_is_text(form: ToolFormat, text: str) -> None:
    answer = parse(form, text, TOOLS)

    assert (answer.text, answer.calls, answer.invalid) == (text, (), ())


def test_marked_calls_are_read_as_ever() -> None:
    marked = f"<tool_call>\n{CALL}\n</tool_call>"
    for text in (marked, f"```\n{marked}\n```", f"{CALL}\n{marked}", f"[1] {marked}"):
        assert parse(HERMES, text, TOOLS).calls == (CITY,), text


def test_without_tools_there_is_nothing_to_call() -> None:
    assert parse(HERMES, CALL).text == CALL


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS.keys())
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"name": "weather", "arguments": {"city": "Kö', "cut off"),
        ('{"name": "weather", "argum', "cut off"),
        ('```json\n{"name": "weather"', "cut off"),
        ('{"name": "weather", "arguments": {"city": }}', "not valid JSON: Expecting value"),
        ('{"name": "weather", "arguments": {"city": "it"s"}}', "cut off"),
        ("{'name': 'weather', 'arguments': {'city': 'Köln'}}", "not valid JSON"),
        (f"{CALL}}}", "closes more brackets than it opens"),
        ('{"name": "weather", "arguments": {}}', "'city' is a required property"),
        ('{"name": "weather", "arguments": null}', "'city' is a required property"),
        ('{"name": "weather", "arguments": [1]}', "must be a JSON object"),
        ('{"name": "weather", "arguments": "Köln"}', "not JSON"),
        (weather(days="3"), "at days: '3' is not"),
        (weather(days=True), "at days: True is not"),
        (weather(unit="K"), "at unit: 'K' is not one of ['C', 'F']"),
        (weather(places=[{"lat": 1}, {"lat": "1"}]), "at places[1].lat: '1' is not of type"),
        (weather(places=[{}]), "at places[0]: 'lat' is a required property"),
        (weather(country="DE"), "'country' was unexpected"),
        ('{"name": "now", "arguments": {"zone": 1}}', None),
    ],
)
def test_a_call_of_a_tool_that_cannot_be_read(
    form: ToolFormat, text: str, error: str | None
) -> None:
    answer = parse(form, text, TOOLS)

    (invalid,) = answer.invalid
    assert invalid.name == ("now" if error is None else "weather")
    assert (error or "unexpected") in invalid.error
    assert (answer.text, answer.calls) == ("", ())


def test_a_call_that_cannot_be_read_takes_no_other_with_it() -> None:
    wrong = '{"name": "weather", "arguments": {"city": 3}}'
    for text in (f"{CALL}\n{wrong}\n{NOW}", f"[{CALL}, {wrong}, {NOW}]"):
        reader = AnswerReader(HERMES, TOOLS)
        events = [event for letter in text for event in reader.feed(letter)] + reader.finish()
        ends = [event for event in events if isinstance(event, CallEnded | CallFailed)]
        assert [event.index for event in ends] == [0, 1, 2]
        assert [isinstance(event, CallEnded) for event in ends] == [True, False, True]
        (invalid,) = [event.invalid for event in ends if isinstance(event, CallFailed)]
        assert (invalid.name, invalid.args) == ("weather", '{"city": 3}')


def test_a_schema_with_references_and_one_that_is_none() -> None:
    parameters = {
        "type": "object",
        "properties": {"place": {"$ref": "#/$defs/Place"}},
        "$defs": {"Place": PLACE},
    }
    tools = [{"type": "function", "function": {"name": "find", "parameters": parameters}}]
    for lat, fits in ((1, True), ("1", False)):
        text = json.dumps({"name": "find", "arguments": {"place": {"lat": lat}}})
        assert bool(parse(HERMES, text, tools).calls) == fits
    odd = [tool("find", [], at={"type": "spot"}), tool("seek", [], at={"$ref": "#/$defs/None"})]
    for name in ("find", "seek"):
        text = json.dumps({"name": name, "arguments": {"at": 1}})
        assert parse(HERMES, text, odd).calls == (ToolCall(name=name, args={"at": 1}),)


def test_text_is_held_back_only_while_it_may_be_a_call() -> None:
    for begin, held, rest in (
        ("", "", "Hello"),
        ("[", "[1]", " says so"),
        ("`", "`", "code`"),
        ("``", "```python\n", "print"),
        ("{", '{"name": "Ada"}', " is her"),
        ("```", '```json\n{"a": 1}', ""),
        ('{"na', CALL, " So."),
    ):
        reader = AnswerReader(HERMES, TOOLS)
        events = reader.feed(begin)
        assert events == []
        events = reader.feed(held[len(begin) :]) + reader.feed(rest)
        assert "".join(e.text for e in events if isinstance(e, Text)) == held + rest
        assert reader.feed(" More") == [Text(" More")]


def test_json_without_a_mark_calls_known_tools_only_where_it_is_the_models_form() -> None:
    call = CALL.replace("arguments", "parameters")
    assert parse(LLAMA, f"Calling:\n{call}", TOOLS).calls == (CITY,)
    for text in (f"Calling:\n{call}", f'So: {call[:-5]}"'):
        other = text.replace("weather", "climate")
        answer = parse(LLAMA, other, TOOLS)
        assert (answer.text, answer.calls, answer.invalid) == (other, (), ())
    assert parse(LLAMA, f"So: {call[:-9]}", TOOLS).invalid == (
        InvalidCall("weather", call[:-9], "The call is cut off."),
    )


@pytest.mark.parametrize(
    ("args", "read"),
    [
        ({"unit": None}, {}),
        ({"unit": None, "places": None, "days": 2}, {"days": 2}),
        ({"days": None}, {"days": None}),  # the schema allows it
        ({"days": None, "unit": None}, {"days": None}),
        ({"city": None}, None),  # it has to be there
        ({"unit": None, "days": "2"}, None),
        ({"wind": None}, None),  # the tool has none
        ({"places": [{"lat": None}]}, None),
    ],
)
def test_null_leaves_an_option_out(args: dict[str, Any], read: dict[str, Any] | None) -> None:
    found = parse(HERMES, weather(**args), TOOLS)
    if read is None:
        assert (found.calls, len(found.invalid)) == ((), 1)
    else:
        assert found.calls == (ToolCall(name="weather", args={"city": "Köln", **read}),)

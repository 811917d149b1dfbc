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
)
from lag_integrations.engine.tools.gemma import GemmaFormat
from lag_integrations.engine.tools.glm import GLMFormat
from lag_integrations.engine.tools.harmony import HarmonyFormat
from lag_integrations.engine.tools.json_format import GRANITE, LLAMA, JsonFormat
from lag_integrations.engine.tools.named_format import NamedFormat
from lag_integrations.engine.tools.qwen_xml import QwenXMLFormat
from lag_integrations.traces.message import ToolCall
from tests.engine.tools.parsing import parse

CITY = ToolCall(name="weather", args={"city": "Köln"})
CALL = '{"name": "weather", "arguments": {"city": "Köln"}}'
MISTRAL = NamedFormat(name="mistral", opener="[TOOL_CALLS]", middle="[ARGS]")


def hermes(*bodies: str) -> str:
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


@pytest.mark.parametrize(
    "body",
    [
        CALL,
        '{"name": "weather", "parameters": {"city": "Köln"}}',
        '{"name": "weather", "args": {"city": "Köln"}}',
        '{"arguments": {"city": "Köln"}, "name": "weather"}',
        '{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}',
        json.dumps({"name": "weather", "arguments": '{"city": "Köln"}'}),
        f"```json\n{CALL}\n```",
        f"[{CALL}]",
        f"{CALL}}}",
    ],
)
def test_the_ways_models_write_a_call(body: str) -> None:
    answer = parse(HERMES, hermes(body))

    assert answer.calls == (CITY,)
    assert (answer.text, answer.invalid) == ("", ())


def test_text_around_calls() -> None:
    answer = parse(HERMES, f"Let me see.\n\n{hermes(CALL)}\nAnd {hermes(CALL, CALL)} \n Done. \n")

    assert answer.text == "Let me see.\nAnd\nDone. \n"
    assert answer.calls == (CITY,) * 3


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Let me see.\n\n<tool_call", "Let me see."),
        ("Let me see. <tool", "Let me see."),
        ("<tool_call", ""),
        ("Is 3 <", "Is 3 <"),
        ("Is 3 <tool> 4?", "Is 3 <tool> 4?"),
    ],
)
def test_the_beginning_of_a_mark_is_left_out_where_an_answer_is_cut_off(
    text: str, kept: str
) -> None:
    for pieces in ([text], text):
        reader = AnswerReader(HERMES)
        events = [event for piece in pieces for event in reader.feed(piece)]
        events += reader.finish(cut_off=True)
        assert "".join(event.text for event in events if isinstance(event, Text)) == kept
    assert parse(HERMES, text).text == text  # said to its end


def test_several_objects_in_one_block() -> None:
    assert parse(HERMES, hermes(f"{CALL}\n{CALL}")).calls == (CITY, CITY)
    assert parse(HERMES, hermes("[]")) == parse(HERMES, "")


def test_several_objects_in_one_block_letter_by_letter() -> None:
    reader = AnswerReader(HERMES)
    events = [event for letter in hermes(f"{CALL}\n{CALL}") for event in reader.feed(letter)]

    assert [event for event in events if isinstance(event, CallEnded)] == [
        CallEnded(0, CITY),
        CallEnded(1, CITY),
    ]
    assert not [event for event in events if isinstance(event, Text)]


def test_line_breaks_within_strings() -> None:
    text = hermes('{"name": "run", "arguments": {"code": "a\n\tb"}}')

    assert parse(HERMES, text).calls == (ToolCall(name="run", args={"code": "a\n\tb"}),)


def test_a_broken_call_takes_no_other_with_it() -> None:
    broken = '{"name": "weather", "arguments": {"city": "it"s"}}'
    brackets = ToolCall(name="f", args={"a": "}}"})
    answer = parse(HERMES, hermes(broken) + HERMES.write([brackets]))
    assert [(call.name, call.args) for call in answer.invalid] == [("weather", broken)]
    assert answer.calls == (brackets,)

    sections = JsonFormat(
        name="sections", begin="<calls>", opener="<call>", closer="</call>", end="</calls>"
    )
    answer = parse(sections, f"<calls><call>bad</call>\n<call>{CALL}</call></calls>")
    assert [call.args for call in answer.invalid] == ["bad"]
    assert (answer.calls, answer.text) == ((CITY,), "")


def test_a_call_that_is_left_open_holds_back_no_other() -> None:
    reader = AnswerReader(HERMES)

    events = reader.feed(hermes('{"name": "f", "arguments": {', CALL) + "\n")

    assert isinstance(events[0], CallFailed)
    assert isinstance(events[1], CallEnded)
    assert (events[0].invalid.name, events[1].call) == ("f", CITY)


def test_a_call_that_is_left_open_with_its_closer_in_a_string_holds_back_no_other() -> None:
    reader = AnswerReader(HERMES)

    events = reader.feed('<tool_call>{"name": "f", ?"a": "</tool_call>\n' + hermes(CALL) + "\n")

    assert isinstance(events[0], CallFailed)
    assert isinstance(events[1], CallEnded)
    assert (events[0].invalid.name, events[1].call) == ("f", CITY)


def test_marks_and_braces_within_strings() -> None:
    code = 'if (a) { print("</tool_call> <tool_call> }") }'
    body = json.dumps({"name": "run", "arguments": {"code": code}})

    assert parse(HERMES, hermes(body)).calls == (ToolCall(name="run", args={"code": code}),)


def test_without_its_end() -> None:
    assert parse(HERMES, f"<tool_call>{CALL}").calls == (CITY,)
    assert parse(HERMES, f"<tool_call>{CALL}\n</tool_c").calls == (CITY,)
    assert parse(HERMES, f"<tool_call>{CALL}\n</tool_c").text == ""


@pytest.mark.parametrize(
    ("body", "name", "error"),
    [
        ('{"name": "weather", "arguments": {"city": }}', "weather", "not valid JSON"),
        ('{"name": "weather", "arguments": {"city": "it"s"}}', "weather", "not valid JSON"),
        ('{"arguments": {"city": "Köln"}}', None, "does not name a tool"),
        ('{"name": "", "arguments": {}}', None, "does not name a tool"),
        ('{"name": {"a": 1}, "arguments": {}}', None, "does not name a tool"),
        ('{"name": "weather", "arguments": [1]}', "weather", "must be a JSON object"),
        ('{"name": "weather", "arguments": "Köln"}', "weather", "not JSON"),
        ('["weather"]', None, "must be a JSON object"),
        ("weather(city='Köln')", None, "not written as it should be"),
        ('{"name": "weather", "arguments": ' + '{"a": ' * 200 + "1" + "}" * 201, "weather", "deep"),
        ('{"name": "weather", "arguments": {"n": ' + "9" * 5000 + "}}", "weather", "not valid"),
    ],
)
def test_malformed_calls(body: str, name: str | None, error: str) -> None:
    answer = parse(HERMES, f"So: {hermes(body, CALL)}")

    (invalid,) = answer.invalid
    assert invalid.name == name
    assert error in invalid.error
    assert invalid.args in (body, "Köln", "weather")
    assert answer.calls == (CITY,), "what follows a malformed call is read"
    assert answer.text == "So:"


@pytest.mark.parametrize("length", range(len("<tool_call>"), len("<tool_call>" + CALL)))
def test_a_call_that_is_cut_off(length: int) -> None:
    text = ("<tool_call>" + CALL)[:length]

    answer = parse(HERMES, text)

    (invalid,) = answer.invalid
    assert invalid.error == "The call is cut off."
    assert invalid.args == text.removeprefix("<tool_call>").strip()
    assert invalid.name == ("weather" if length >= 29 else None)


def test_text_is_not_held_back_longer_than_needed() -> None:
    reader = AnswerReader(HERMES)

    assert reader.feed("Hello") == [Text("Hello")]
    assert reader.feed(" <tool") == []
    assert reader.feed("box> ") == [Text(" <toolbox>")]
    assert reader.feed("and") == [Text(" and")]
    assert reader.feed(f" <tool_call>{CALL}</tool_call>")[-1] == CallEnded(0, CITY)
    assert reader.finish() == []


def test_json_alone_is_a_call_only_if_it_looks_like_one() -> None:
    call = '{"name": "weather", "parameters": {"city": "Köln"}}'
    assert parse(LLAMA, call).calls == (CITY,)
    assert parse(LLAMA, f"<|python_tag|>{call}; {call}").calls == (CITY, CITY)
    assert parse(LLAMA, f"{call}; {call}").calls == (CITY, CITY)
    assert parse(LLAMA, f"Calling:\n```json\n{call}\n```").calls == (CITY,)
    for text in (
        '{"name": "Ada", "age": 36}',
        '{"city": "Köln"}',
        'Say {"name": "Ada", "age": 3',
        '[{"name": "Ada"}, {"name": "Bob"}]',
        '```json\n{"name": "Ada"}\n```',
    ):
        answer = parse(LLAMA, text)
        assert (answer.text, answer.calls, answer.invalid) == (text, (), ()), text


def test_json_alone_that_is_broken() -> None:
    for text in ('{"name": "weather", "parameters": {"city":', '{"name": "weather", "para'):
        (invalid,) = parse(LLAMA, f"{text} ").invalid
        assert invalid == InvalidCall("weather", text, "The call is cut off.")


def test_lists() -> None:
    assert parse(GRANITE, f"<|tool_call|>[{CALL}, {CALL}]").calls == (CITY, CITY)
    mixed = parse(GRANITE, f'Hm. <|tool_call|>[{CALL}, {{"name": 3}}]')
    assert mixed.calls == (CITY,)
    assert mixed.invalid[0].error == "The call does not name a tool."
    cohere = JsonFormat(
        name="command",
        begin="<|START_ACTION|>",
        end="<|END_ACTION|>",
        is_list=True,
        name_key="tool_name",
        args_key="parameters",
    )
    text = '[\n {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Köln"}}\n]'
    assert parse(cohere, f"<|START_ACTION|>{text}<|END_ACTION|>").calls == (CITY,)


def test_names_outside_of_the_json() -> None:
    args = '{"city": "Köln"}'
    assert parse(MISTRAL, f"[TOOL_CALLS]weather[ARGS]{args}").calls == (CITY,)
    assert parse(MISTRAL, f"[TOOL_CALLS]weather[CALL_ID]a1[ARGS]{args}").calls == (CITY,)
    assert parse(MISTRAL, f"[TOOL_CALLS]weather{args}[TOOL_CALLS]weather{args}").calls == (
        CITY,
        CITY,
    )
    lost = parse(MISTRAL, f"[TOOL_CALLS]weather[TOOL_CALLS]weather[ARGS]{args}")
    assert lost.calls == (CITY,)
    assert "no arguments" in lost.invalid[0].error
    assert parse(MISTRAL, f"[TOOL_CALLS][ARGS]{args}").invalid[0].name is None
    assert parse(MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city').invalid == (
        InvalidCall("weather", '{"city', "The call is cut off."),
    )


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
        "<|start|>assistant<|channel|>commentary to=functions.weather <|message|>",
        "<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>",
        " to=functions.weather<|channel|>commentary json<|message|>",
    ],
)
def test_harmony(header: str) -> None:
    answer = parse(HarmonyFormat(), f'Hm.{header}{{"city": "Köln"}}<|call|>')

    assert answer.calls == (CITY,)
    assert (answer.text, answer.invalid) == ("Hm.", ())


TYPED: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "set",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "number": {"type": "number"},
                    "flag": {"type": "boolean"},
                    "items": {"type": "array"},
                    "kind": {"enum": ["1", "2"]},
                },
            },
        },
    }
]
VALUES = {
    "text": ("12", "12"),
    "maybe": ("12", "12"),
    "number": ("12", 12),
    "flag": ("True", True),
    "items": ('["a", 1]', ["a", 1]),
    "kind": ("1", "1"),
    "unknown": ("12", 12),
}


@pytest.mark.parametrize("form", [QwenXMLFormat(), GLMFormat()])
def test_values_without_types_are_of_the_types_the_tool_wants(form: ToolFormat) -> None:
    written = ToolCall(name="set", args={name: text for name, (text, _) in VALUES.items()})

    (call,) = parse(form, form.write([written]), TYPED).calls

    assert call.args == {name: value for name, (_, value) in VALUES.items()}


@pytest.mark.parametrize("form", [QwenXMLFormat(), GLMFormat(), GemmaFormat(), HERMES])
def test_arguments_that_were_never_read_are_written_as_they_are(form: ToolFormat) -> None:
    assert "no {JSON" in form.write([ToolCall(name="f", args="no {JSON")])


def test_null_where_it_is_allowed() -> None:
    form = GLMFormat()
    text = form.write([ToolCall(name="set", args={"maybe": "null"})])

    assert parse(form, text, TYPED).calls[0].args == {"maybe": None}


def test_qwen_coder_as_it_is_written() -> None:
    form = QwenXMLFormat()
    body = "<function=weather>\n<parameter=city>\nKöln\n</parameter>\n</function>"
    html = "<b>\n</parameter> {"
    assert parse(form, f"I look.\n<tool_call>\n{body}\n</tool_call>").calls == (CITY,)
    assert parse(form, body).calls == (CITY,)
    assert parse(form, f"<tool_call>\n{body}").calls == (CITY,)
    asked = ToolCall(name="write", args={"html": html})
    assert parse(form, form.write([asked])).calls == (asked,)
    for broken, name in (
        ("<tool_call>\n<function=f>\n<parameter=a>\nb\n</function>\n</tool_call>", "f"),
        ("<tool_call>\nf\n</tool_call>", None),
        ("<tool_call>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", None),
    ):
        answer = parse(form, broken + form.write([CITY]))
        assert [call.name for call in answer.invalid] == [name]
        assert answer.calls == (CITY,)


def test_glm_as_it_is_written() -> None:
    form = GLMFormat()
    pair = "<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>"
    assert parse(form, f"Well.\n<tool_call>weather\n{pair}\n</tool_call>").calls == (CITY,)
    assert parse(form, f"<tool_call>weather{pair}</tool_call>").calls == (CITY,)
    assert parse(form, f"<tool_call>weather\n{pair}").calls == (CITY,)
    assert parse(form, "<tool_call>now\n</tool_call>").calls == (ToolCall(name="now"),)
    answer = parse(form, "<tool_call>weather\n<arg_key>city</arg_key>\n</tool_call>")
    assert answer.invalid[0].name == "weather"


def test_gemma_as_it_is_written() -> None:
    args = '{a:<|"|>x: {y}, "z"<|"|>,n:-1.5,l:[true,<|"|>1<|"|>],o:{k:null}}'
    (call,) = parse(GemmaFormat(), f"<|tool_call>call:f{args}<tool_call|>").calls

    assert call == ToolCall(
        name="f", args={"a": 'x: {y}, "z"', "n": -1.5, "l": [True, "1"], "o": {"k": None}}
    )
    assert parse(GemmaFormat(), "<|tool_call>call:f{a:b}<tool_call|>").invalid[0].name == "f"
    assert parse(GemmaFormat(), "<|tool_call>f<tool_call|>").invalid[0].name is None

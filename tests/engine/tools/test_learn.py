# ruff: noqa: RUF001  (DeepSeek writes its tags with full-width bars)
from __future__ import annotations

import json
from typing import Any

import pytest

from lag_integrations.engine.tools import (
    HERMES,
    ToolFormat,
    learn_tool_format,
    tool_result_text,
)
from lag_integrations.traces.message import Message, ToolCall
from tests.engine.tools.parsing import parse
from tests.engine.tools.templates import ALL, applier

LEARNED = {name: learn_tool_format(applier(template)) for name, template in ALL.items()}
CALLS = [ToolCall(name="search", args={"query": "tea", "page": "two"}), ToolCall(name="now")]
TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "Finds.", "parameters": {}},
}


@pytest.mark.parametrize(
    ("template", "name", "shows_tools", "shows_calls", "shows_tool_results"),
    [
        ("chatml", "hermes", False, False, False),
        ("qwen", "hermes", True, True, True),
        ("qwen_thinking", "hermes", True, True, True),
        ("in_header", "hermes", False, False, False),
        ("llama", "llama", True, True, True),
        ("mistral_nemo", "mistral", True, True, True),
        ("mistral_named", "mistral", True, True, True),
        ("granite", "granite", True, False, True),
        ("command", "command", True, True, True),
        ("qwen_coder", "qwen_xml", True, True, True),
        ("glm", "glm", True, True, True),
        ("deepseek", "deepseek", False, True, True),
        ("harmony", "harmony", True, True, True),
        ("gemma", "gemma", True, True, True),
        ("phi", "json", True, True, True),
        ("strict", "hermes", False, False, False),
        ("silent", "hermes", False, False, False),
        ("functionary", "named", True, True, True),
    ],
)
def test_families_are_recognised(
    template: str, name: str, shows_tools: bool, shows_calls: bool, shows_tool_results: bool
) -> None:
    form = LEARNED[template]

    assert form.name == name
    assert form.shows_tools == shows_tools
    assert form.shows_calls == shows_calls
    assert form.shows_tool_results == shows_tool_results
    assert form.arguments_as_text == (template == "deepseek")


SHOWING = [name for name, form in LEARNED.items() if form.shows_calls]
ONE_CALL = ("llama", "harmony")  # Their templates cannot show more.
OTHERWISE = ("command", "harmony", "mistral_nemo")  # Shown with ids, or in another order.


@pytest.mark.parametrize("template", SHOWING)
def test_calls_that_the_template_renders_are_read_back(template: str) -> None:
    form, apply = LEARNED[template], applier(ALL[template])
    calls = CALLS[:1] if template in ONE_CALL else CALLS
    chat: list[dict[str, Any]] = [{"role": "user", "content": "Q?"}]
    asked = apply(chat, add_generation_prompt=True)
    chat.append(_assistant(calls, form))
    turn = apply(chat).removeprefix(asked)

    answer = parse(form, turn)

    assert answer.calls == tuple(calls)
    assert answer.invalid == ()


@pytest.mark.parametrize("template", [name for name in SHOWING if name not in OTHERWISE])
def test_calls_are_written_as_the_template_renders_them(template: str) -> None:
    form, apply = LEARNED[template], applier(ALL[template])
    calls = CALLS[:1] if template in ONE_CALL else CALLS
    chat = [{"role": "user", "content": "Q?"}, _assistant(calls, form)]

    assert form.write(calls) in apply(chat).replace("[CALL_ID]callid000", "").replace(
        "[CALL_ID]callid001", ""
    )


@pytest.mark.parametrize("template", ALL)
def test_a_forced_call_is_read_back(template: str) -> None:
    form = LEARNED[template]
    forms = form.forms([TOOL])
    ((before, schema),) = forms.calls
    one = schema["items"] if schema.get("type") == "array" else schema
    call: Any = {}
    if not before:
        name_key, args_key = one["required"]
        call = {name_key: "search", args_key: {}}
    written = json.dumps([call] if schema.get("type") == "array" else call)

    answer = parse(form, forms.opening + before + written + forms.closing)

    assert answer.calls == (ToolCall(name="search"),)
    assert (answer.text, answer.invalid) == ("", ())
    assert any(forms.opening.strip().startswith(start) for start in form.starts()) or (
        form.name == "llama"
    )


def test_frames_are_what_the_template_says() -> None:
    def around(form: ToolFormat) -> tuple[str, str]:
        forms = form.forms([TOOL])
        return forms.opening, forms.closing

    assert around(HERMES) == around(LEARNED["qwen"]) == ("<tool_call>\n", "\n</tool_call>")
    assert around(LEARNED["command"]) == ("<|START_ACTION|>", "<|END_ACTION|>")
    assert LEARNED["qwen_thinking"] == LEARNED["qwen"]
    assert around(LEARNED["mistral_nemo"])[0] == "[TOOL_CALLS]"
    assert around(LEARNED["llama"]) == ("", "")
    assert LEARNED["mistral_named"].write(CALLS[1:]) == "[TOOL_CALLS]now[ARGS]{}"


def test_instructions_are_short_and_show_the_format_where_the_template_does_not() -> None:
    text = LEARNED["chatml"].instructions([TOOL])

    assert json.dumps(TOOL["function"]) in text.splitlines()
    assert (
        '<tool_call>\n{"name": "tool-name", "arguments": {"argument": "value"}}\n</tool_call>'
        in text
    )
    assert "directly" in text.splitlines()[-1]
    assert len(text) < 350
    assert "<｜tool▁call▁begin｜>" in LEARNED["deepseek"].instructions([TOOL])
    assert LEARNED["qwen"].instructions([TOOL]) == ""
    assert LEARNED["chatml"].instructions([]) == ""


def test_special_tokens_of_the_format_are_named() -> None:
    known = ["[TOOL_CALLS]", "[INST]", "</s>", ""]

    assert LEARNED["mistral_nemo"].special_tokens(known) == {"[TOOL_CALLS]"}
    assert LEARNED["command"].special_tokens(["<|END_ACTION|>", "<|EOT|>"]) == {"<|END_ACTION|>"}
    assert LEARNED["chatml"].special_tokens(known) == frozenset()


def test_a_template_that_always_fails_gives_the_default() -> None:
    def apply(*_: Any, **__: Any) -> str:
        raise KeyError("anything")

    assert learn_tool_format(apply) == HERMES


def test_a_tool_result_as_text() -> None:
    message = Message(role="tool", content=[{"type": "text", "text": "21 °C"}])

    assert tool_result_text(message) == "<tool_response>\n21 °C\n</tool_response>"


def _assistant(calls: list[ToolCall], form: ToolFormat) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": f"callid00{number}",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.args) if form.arguments_as_text else call.args,
                },
            }
            for number, call in enumerate(calls)
        ],
    }

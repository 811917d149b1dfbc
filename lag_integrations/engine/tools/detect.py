"""Learns from a chat template, by trying, which tool format its model uses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from lag_integrations.engine.tools.format import ToolFormat
from lag_integrations.engine.tools.gemma import GemmaFormat
from lag_integrations.engine.tools.glm import GLMFormat
from lag_integrations.engine.tools.harmony import HarmonyFormat
from lag_integrations.engine.tools.json_format import GRANITE, HERMES, LLAMA, JsonFormat
from lag_integrations.engine.tools.json_text import load
from lag_integrations.engine.tools.named_format import NamedFormat
from lag_integrations.engine.tools.qwen_xml import QwenXMLFormat
from lag_integrations.traces.message import ToolCall

Apply = Callable[..., str]
"""``apply(messages, tools=…, add_generation_prompt=…)`` renders messages to text."""

_USER, _SAID, _NAME, _KEY, _VALUE, _RESULT = (
    f"LAG{word}MARK" for word in ("USER", "SAID", "NAME", "KEY", "VALUE", "RESULT")
)
_IDS = ("lagcall01", "lagcall02")  # Nine letters and digits: Mistral's templates insist.
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Does something.",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "A text."}},
            "required": [_KEY],
        },
    },
}
_CALL = ToolCall(name=_NAME, args={_KEY: _VALUE})
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")

# What calls written otherwise than as JSON are recognised by.
_FAMILIES: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    (("<parameter=",), QwenXMLFormat()),
    (("<arg_key>",), GLMFormat()),
    (("to=functions.",), HarmonyFormat()),
    (("<|tool_call>", "call:"), GemmaFormat()),
)
# Templates that show tools, but no calls: what they tell the model to write.
_TOLD: tuple[tuple[tuple[str, ...], ToolFormat], ...] = (
    *_FAMILIES,
    (("<tool_call>",), HERMES),
    (("<|tool_call|>",), GRANITE),
    (('"parameters":', "JSON for a function call"), LLAMA),
)
_NAMES = {
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "<|START_ACTION|>": "command",
    "tool▁call▁begin": "deepseek",
}


def learn_tool_format(apply: Apply) -> ToolFormat:
    """Learn a model's tool format from its chat template.

    What the template renders for a call is taken apart: a JSON object with name and arguments, in
    a list or framed, becomes a `JsonFormat`; a name before a JSON object of arguments a
    `NamedFormat`; families that write arguments otherwise are recognised by their tags. Where the
    template shows no tools, no calls, or nothing that is understood, it is the Hermes form with
    instructions for the system message.

    Args:
        apply: Renders with the template: ``apply(messages, tools=None or a list,
            add_generation_prompt=bool)``. Whatever it raises means that the template refuses.
    """
    template = _Template(apply)
    shows_tools = template.shows_tools()
    found = template.learn_calls(shows_tools)
    if found is None and shows_tools:
        told = template.render([_user()], tools=True) or ""
        found = next(
            (form for special_tokens, form in _TOLD if all(m in told for m in special_tokens)), None
        )
        # Tools shown without a word on how to call them need instructions anyway.
        shows_tools = found is not None
    format = replace(found or HERMES, shows_tools=shows_tools)
    # A plain template would print any role; one that knows tools was trained on their results.
    knows_tools = format.shows_tools or format.shows_calls
    return replace(format, shows_tool_results=knows_tools and template.shows_results(format))


@dataclass(frozen=True)
class _Template:
    apply: Apply

    def render(
        self, messages: Sequence[dict[str, Any]], *, tools: bool = False, generate: bool = False
    ) -> str | None:
        try:
            return self.apply(
                list(messages), tools=[_TOOL] if tools else None, add_generation_prompt=generate
            )
        except Exception:  # A template is foreign code: whatever it raises, it refuses.
            return None

    def shows_tools(self) -> bool:
        return _NAME in (self.render([_user()], tools=True, generate=True) or "")

    def learn_calls(self, tools: bool) -> ToolFormat | None:
        """Return how the template renders calls; None if it does not, or not understandably."""
        for as_text in (False, True):
            shown = self._call_texts(tools, as_text)
            if shown is None:
                continue
            for special_tokens, family in _FAMILIES:
                if all(mark in shown.all for mark in special_tokens):
                    return replace(family, shows_calls=True, arguments_as_text=as_text)
            found = _learn_json(shown) or _learn_named(shown)
            if found is not None:
                return replace(found, shows_calls=True, arguments_as_text=as_text)
        return None

    def shows_results(self, format: ToolFormat) -> bool:
        text = self.render(
            [
                _user(),
                _assistant(1, format.arguments_as_text)
                if format.shows_calls
                else {"role": "assistant", "content": format.write([_CALL])},
                {"role": "tool", "content": _RESULT, "tool_call_id": _IDS[0], "name": _NAME},
            ],
            tools=format.shows_tools,
            generate=True,
        )
        return _RESULT in (text or "")

    def _call_texts(self, tools: bool, as_text: bool) -> _Shown | None:
        asked = self.render([_user()], tools=tools, generate=True)
        said = self.render([_user(), {"role": "assistant", "content": _SAID}], tools=tools)
        one = self.render([_user(), _assistant(1, as_text)], tools=tools)
        if asked is None or one is None:
            return None
        tail = (said or "").rpartition(_SAID)[2]
        first = _answer(one, asked, tail)
        if _NAME not in first:
            return None
        two = self.render([_user(), _assistant(2, as_text)], tools=tools)
        both = _answer(two, asked, tail) if two else ""
        return _Shown(first, both if both.count(_VALUE) == 2 else None)


@dataclass(frozen=True)
class _Shown:
    """What a template renders for one call, and for two if it can."""

    all: str
    two: str | None


class _Frame(TypedDict):
    begin: str
    opener: str
    closer: str
    separator: str
    end: str


def _user() -> dict[str, Any]:
    return {"role": "user", "content": _USER}


def _assistant(calls: int, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(_CALL.args) if as_text else _CALL.args
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": id, "function": {"name": _NAME, "arguments": arguments}}
            for id in _IDS[:calls]
        ],
    }


def _answer(text: str, asked: str, tail: str) -> str:
    """Return the assistant's turn without its header and its end."""
    # From the question on: where the tools are shown may depend on what comes last.
    asked, text = asked.rpartition(_USER)[2], text.rpartition(_USER)[2]
    start = common_length(asked, text)
    # The header may go on otherwise (with reasoning, say) within a tag that begins alike.
    start = next(
        (tag.start() for tag in _TAG.finditer(text) if tag.start() < start < tag.end()), start
    )
    answer = text[start:]
    tags = _TAG.findall(tail)
    for end in (tail.strip(), *tags[-1:]):
        if end and end in answer:
            return answer[: answer.index(end)]
    return answer


def _learn_json(shown: _Shown) -> JsonFormat | None:
    places = _objects(shown.all)
    if not places:
        return None
    start, end, value = places[0]
    call = value.get("function")
    call = call if isinstance(call, dict) else value
    name_key = next((key for key, item in call.items() if item == _NAME), None)
    args_key = next((key for key, item in call.items() if _is_arguments(item)), None)
    if name_key is None or args_key is None:
        return None
    before, after = shown.all[:start], shown.all[end:]
    is_list = before.rstrip().endswith("[") and after.lstrip().startswith("]")
    if is_list:
        begin, finish = _last_tag(before.rstrip()[:-1]), after.lstrip()[1:].rstrip()
        frame = _Frame(begin=begin, opener="", closer="", separator="", end=finish)
    else:
        frame = _frame(before, after, _between(shown.two))
    marker = frame["begin"] + frame["opener"]
    name = next((name for tag, name in _NAMES.items() if tag in marker), None)
    if name is None:
        name = "json_list" if is_list else "json" if marker else "llama"
    return JsonFormat(name=name, is_list=is_list, name_key=name_key, args_key=args_key, **frame)


def _learn_named(shown: _Shown) -> NamedFormat | None:
    start = shown.all.find('{"' + _KEY)
    name = shown.all.rfind(_NAME, 0, start) if start >= 0 else -1
    if name < 0:
        return None
    before, after = shown.all[:name], shown.all[shown.all.index("}", start) + 1 :]
    # An id that stands between them is not the model's to write.
    middle = shown.all[name + len(_NAME) : start].rpartition(_IDS[0])[2]
    between = None
    if shown.two is not None:
        end = shown.two.index("}", shown.two.index('{"' + _KEY)) + 1
        between = shown.two[end : shown.two.index(_NAME, end)]
    frame = _frame(before, after, between)
    if not frame["opener"].strip():
        return None  # What begins a call stands in the header: nothing tells it from text.
    family = next((family for tag, family in _NAMES.items() if tag in frame["opener"]), "named")
    return NamedFormat(name=family, middle=middle, **frame)


def _frame(before: str, after: str, between: str | None) -> _Frame:
    """Tell what stands around all calls and around each, by the texts around and between them."""
    if between is None:
        return _Frame(begin="", opener=_last_tag(before), closer=after, separator="\n", end="")
    opener = before[len(before) - common_length(before[::-1], between[::-1]) :]
    rest = between[: len(between) - len(opener)]
    closer = after[: common_length(after, rest)]
    begin = _last_tag(before[: len(before) - len(opener)]) if opener.strip() else _last_tag(before)
    return _Frame(
        begin="" if begin == opener else begin,
        opener=opener.lstrip(),
        closer=closer,
        separator=rest[len(closer) :] + opener[: len(opener) - len(opener.lstrip())],
        end=after[len(closer) :],
    )


def _last_tag(text: str) -> str:
    """Return a text from its last tag on: what stands before is no part of a call."""
    tags = list(_TAG.finditer(text))
    if tags and not tags[-1].group().startswith("</"):
        return text[tags[-1].start() :]
    return text[tags[-1].end() if tags else 0 :].lstrip()


def _between(two: str | None) -> str | None:
    places = _objects(two) if two else []
    return two[places[0][1] : places[1][0]] if two and len(places) == 2 else None


def _objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Find the outermost JSON objects that hold name and arguments, and where they are."""
    found = []
    position = 0
    while (position := text.find("{", position)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, position)
        except ValueError:
            value, end = None, position + 1
        written = json.dumps(value)
        if isinstance(value, dict) and _NAME in written and _KEY in written:
            found.append((position, end, value))
            position = end
        else:
            position += 1
    return found


def _is_arguments(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = load(value)
        except ValueError:
            return False
    return bool(value == _CALL.args)


def common_length(first: str, second: str) -> int:
    """Return the length of the common prefix."""
    for length, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return length
    return min(len(first), len(second))

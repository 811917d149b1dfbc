"""Calls that are all of an answer, as JSON without a mark: any model may write them like that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.held_text import SPACE, HeldText, Reading
from lag_integrations.engine.tools.json_text import (
    after_doubled,
    after_fence,
    as_call,
    invalid_call,
    is_call,
    json_end,
    load,
    reason_of,
)
from lag_integrations.engine.tools.schema import Schema, misfit, without_empty_options
from lag_integrations.traces.message import ToolCall

_TEXT = Block(0, is_text=True)
# As small models write them: quotes may be single, and the arguments may come first.
_NAMED = re.compile(r"""["'](?:name|tool_name|function)["']\s*:\s*["']([^"']*)["']""")
_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters|args)["']\s*:""")
_CUT_AFTER_NAME = re.compile(r"""\s*(?:,\s*(?:["']\w*["']?\s*)?)?$""")


def read_alone(held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
    """Read an answer that is nothing but calls of these tools: JSON, bare or in one fence.

    That is an object, several one after the other, or a list. Each must name one of the tools and
    hold arguments; one whose arguments do not fit the tool's schema, or that is no JSON, is a call
    that cannot be read. Whatever else an answer holds, it is text.

    Args:
        held: The answer.
        tools: The tools, in OpenAI's form.

    Returns:
        The calls, all of the text; or, as soon as that is certain, that it is text.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    begin = yield from after_fence(held, 0)
    if held.text[begin : begin + 1] not in ("{", "["):
        return _TEXT
    calls: list[ToolCall | InvalidCall] = []
    while True:
        first = yield from after_doubled(held, begin)
        end = yield from json_end(held, first)
        if end is None:
            break
        raw = held.text[first:end]
        read = _read(raw, schemas)
        if not read:
            return _TEXT
        more = yield from _after_brackets(held, end)
        if more > end and not (first > begin and held.text[end:more].strip() == "}"):
            error = "The call is not valid JSON: it closes more brackets than it opens."
            read = [invalid_call(held.text[begin:more], error, read[0].name)]
        calls += read
        following = yield from _after_separator(held, more)
        if not (raw.startswith("{") and held.text.startswith("{", following)):
            is_over = yield from _is_over(held, more)
            return Block(len(held.text), tuple(calls)) if is_over else _TEXT
        begin = following
    raw = held.text[begin:].strip()
    name = _meant(raw, schemas)
    if name is None:
        return _TEXT
    return Block(len(held.text), (*calls, invalid_call(raw, "The call is cut off.", name)))


def _after_brackets(held: HeldText, position: int) -> Reading[int]:
    """Skip the closing brackets at a position, and white space before each."""
    while True:
        at = yield from held.past(SPACE, position)
        if held.text[at : at + 1] not in ("}", "]"):
            return position
        position = at + 1


def _after_separator(held: HeldText, position: int) -> Reading[int]:
    """Skip what may stand between two calls."""
    position = yield from held.past(SPACE, position)
    if held.text[position : position + 1] not in (",", ";"):
        return position
    return (yield from held.past(SPACE, position + 1))


def _is_over(held: HeldText, position: int) -> Reading[bool]:
    """Tell whether nothing follows at a position but white space and the end of the fence."""
    position = yield from held.past(SPACE, position)
    if held.text.lstrip().startswith("```"):
        for _ in range(3):
            position = yield from held.after("`", position)
        position = yield from held.past(SPACE, position)
    return position == len(held.text)


def _read(raw: str, schemas: Mapping[str, Schema | None]) -> list[ToolCall | InvalidCall]:
    """Read the calls in whole JSON, or what was to be JSON; none if it is something else."""
    try:
        value = load(raw)
    except ValueError as error:
        name = _meant(raw, schemas)
        return [] if name is None else [invalid_call(raw, reason_of(error), name)]
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and is_call(item, schemas) for item in items):
        return []
    return [_fitting(as_call(item), schemas) for item in items]


def _fitting(
    call: ToolCall | InvalidCall, schemas: Mapping[str, Schema | None]
) -> ToolCall | InvalidCall:
    if isinstance(call, InvalidCall):
        return call
    schema = schemas[call.name]
    if (error := misfit(call.args, schema)) is None:
        return call
    args = without_empty_options(call.args, schema)
    if misfit(args, schema) is None:
        return ToolCall(name=call.name, args=args)
    return InvalidCall(call.name, json.dumps(call.args, ensure_ascii=False), error)


def _meant(raw: str, schemas: Mapping[str, Schema | None]) -> str | None:
    """Find the tool that broken JSON was to call: it has both keys, or ends after the name."""
    has_arguments = _ARGUMENTS.search(raw) is not None
    for named in _NAMED.finditer(raw):
        if named.group(1) in schemas and (has_arguments or _CUT_AFTER_NAME.match(raw, named.end())):
            return named.group(1)
    return None

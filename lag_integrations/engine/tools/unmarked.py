"""Calls that are all of an answer, as JSON without a mark: any model may write them like that."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
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
from lag_integrations.engine.tools.schema import Schema, misfit
from lag_integrations.traces.message import ToolCall

_TEXT = Block(0, is_text=True)
_MORE_BRACKETS = re.compile(r"(?:\s*[}\]])*")
_BETWEEN = re.compile(r"\s*[,;]?\s*")
_FENCE_END = re.compile(r"\s*(?:`{1,3}\s*)?")
# As small models write them: quotes may be single, and the arguments may come first.
_NAMED = re.compile(r"""["'](?:name|tool_name|function)["']\s*:\s*["']([^"']*)["']""")
_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters|args)["']\s*:""")
_CUT_AFTER_NAME = re.compile(r"""\s*(?:,\s*(?:["']\w*["']?\s*)?)?$""")


def read_alone(text: str, tools: Sequence[dict[str, Any]], final: bool) -> Block | None:
    """Read an answer that is nothing but calls of these tools: JSON, bare or in one fence.

    That is an object, several one after the other, or a list. Each must name one of the tools and
    hold arguments; one whose arguments do not fit the tool's schema, or that is no JSON, is a call
    that cannot be read. Whatever else an answer holds, it is text.

    Args:
        text: The answer so far.
        tools: The tools, in OpenAI's form.
        final: The text is all there is.

    Returns:
        The calls, all of the text; or that it is text, whatever follows; None (never if ``final``)
        as long as it may be either.
    """
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    begin = after_fence(text, 0, final)
    if begin is None or (begin == len(text) and not final):
        return None
    if text[begin : begin + 1] not in ("{", "["):
        return _TEXT
    calls: list[ToolCall | InvalidCall] = []
    while (end := json_end(text, first := after_doubled(text, begin))) is not None:
        raw = text[first:end]
        read = _read(raw, schemas)
        if not read:
            return _TEXT
        more = _end(_MORE_BRACKETS, text, end)
        if more > end and not (first > begin and text[end:more].strip() == "}"):
            error = "The call is not valid JSON: it closes more brackets than it opens."
            read = [invalid_call(text[begin:more], error, read[0].name)]
        calls += read
        following = _end(_BETWEEN, text, more)
        if not (raw.startswith("{") and text.startswith("{", following)):
            return _end_of(text, more, following, calls, final)
        begin = following
    if not final:
        return None
    raw = text[begin:].strip()
    name = _meant(raw, schemas)
    if name is None:
        return _TEXT
    return Block(len(text), (*calls, invalid_call(raw, "The call is cut off.", name)))


def _end_of(
    text: str, end: int, following: int, calls: Sequence[ToolCall | InvalidCall], final: bool
) -> Block | None:
    """Tell what a text is that has no further call."""
    fenced = text.lstrip().startswith("```")
    over = _end(_FENCE_END, text, end) == len(text) if fenced else not text[end:].strip()
    if final:
        return Block(len(text), tuple(calls)) if over else _TEXT
    return None if over or following == len(text) else _TEXT


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
    error = misfit(call.args, schemas[call.name])
    if error is None:
        return call
    return InvalidCall(call.name, json.dumps(call.args, ensure_ascii=False), error)


def _meant(raw: str, schemas: Mapping[str, Schema | None]) -> str | None:
    """Find the tool that broken JSON was to call: it has both keys, or ends after the name."""
    for named in _NAMED.finditer(raw):
        if named.group(1) in schemas and (
            _ARGUMENTS.search(raw) or _CUT_AFTER_NAME.match(raw, named.end())
        ):
            return named.group(1)
    return None


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return position if found is None else found.end()

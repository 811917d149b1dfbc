"""The calls of Gemma 4: JSON with keys as they are, and strings between tokens of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.format import ToolFormat, read_block
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.json_text import as_call, broken, load
from lag_integrations.traces.message import ToolCall

_OPEN, _CLOSE, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_CALL = re.compile(r"\s*call:([^\s{}]+)\s*(\{.*\})\s*", re.DOTALL)
_PLACE = re.compile(r'"\0(\d+)"')
_KEY = re.compile(r"([{,]\s*)([^\s{}\[\],:\"]+)(\s*:)")


@dataclass(frozen=True, kw_only=True)
class GemmaFormat(ToolFormat):
    """``call:name{key:value}`` between tool call tokens; forced calls in Hermes form."""

    name: str = "gemma"

    def starts(self) -> tuple[str, ...]:
        return (_OPEN, "<tool_call>")

    def write(self, calls: Sequence[ToolCall]) -> str:
        return "".join(f"{_OPEN}call:{call.name}{_write(_args(call))}{_CLOSE}" for call in calls)

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        if not held.text.startswith(_OPEN):
            return (yield from read_block(held))
        closer = yield from held.first_of((_CLOSE,), len(_OPEN))
        if closer is None:
            return (yield from broken(held, len(_OPEN), ()))
        at, end = closer
        return Block(end, (_read(held.text[len(_OPEN) : at]),))


def _args(call: ToolCall) -> dict[str, Any]:
    return call.args if isinstance(call.args, dict) else {"arguments": call.args}


def _write(value: Any) -> str:
    if isinstance(value, str):
        return _QUOTE + value + _QUOTE
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_write(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    return json.dumps(value)


def _read(text: str) -> ToolCall | InvalidCall:
    call = _CALL.fullmatch(text)
    if call is None:
        return InvalidCall(None, text.strip(), "The call is not written as call:name{arguments}.")
    name, args = call.groups()
    # Outside of strings only keys are not JSON yet; strings stand at the odd places.
    parts = args.split(_QUOTE)
    strings = [json.dumps(part) for part in parts[1::2]]
    marked = "".join(
        part if index % 2 == 0 else f'"\0{index // 2}"' for index, part in enumerate(parts)
    )
    keyed = _KEY.sub(r'\1"\2"\3', marked)
    written = _PLACE.sub(lambda place: strings[int(place.group(1))], keyed)
    try:
        return as_call({"name": name, "arguments": load(written)})
    except (ValueError, IndexError):
        return InvalidCall(name, args, "The arguments of the call cannot be read.")

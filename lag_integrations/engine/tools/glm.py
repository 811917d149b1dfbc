"""The calls of GLM 4.5 and later: the name, then pairs of tags for keys and values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.format import ToolFormat, begins_block, read_block
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.values import read_value, written_args
from lag_integrations.traces.message import ToolCall

_NAME = re.compile(r"\s*([^\s<>{}\[\]]+)\s*")
# A key ends at the first closing tag: were it tried with later ones, it would take the square of
# the text's length. A value may hold its closing tag.
_PAIR = re.compile(
    r"<arg_key>((?:(?!</arg_key>).)*)</arg_key>\s*"
    r"<arg_value>(.*?)</arg_value>\s*(?=<arg_key>|$)",
    re.DOTALL,
)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, kw_only=True)
class GLMFormat(ToolFormat):
    """``<arg_key>`` and ``<arg_value>`` within ``<tool_call>``; forced calls in Hermes form."""

    name: str = "glm"

    def starts(self) -> tuple[str, ...]:
        return (_OPEN,)

    def write(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(map(_write, calls))

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        if (yield from begins_block(held)):
            return (yield from read_block(held))
        closer = yield from held.first_of((_CLOSE,), len(_OPEN))
        # Without its end, a call is good if all its pairs are whole: a stop token may have cut it.
        at, end = closer or (len(held.text), len(held.text))
        return Block(end, (_read(held.text[len(_OPEN) : at], tools),))


def _write(call: ToolCall) -> str:
    pairs = "".join(
        f"<arg_key>{name}</arg_key>\n<arg_value>{value}</arg_value>\n"
        for name, value in written_args(call).items()
    )
    return f"{_OPEN}{call.name}\n{pairs}{_CLOSE}"


def _read(body: str, tools: Sequence[dict[str, Any]]) -> ToolCall | InvalidCall:
    named = _NAME.match(body)
    if named is None:
        return InvalidCall(None, body.strip(), "The call does not name a tool.")
    name, position = named.group(1), named.end()
    args = {}
    while pair := _PAIR.match(body, position):
        key = pair.group(1).strip()
        args[key] = read_value(pair.group(2), name, key, tools)
        position = pair.end()
    if position < len(body):
        return InvalidCall(name, body.strip(), "The arguments of the call cannot be read.")
    return ToolCall(name=name, args=args)

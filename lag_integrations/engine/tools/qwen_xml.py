"""The calls of Qwen3-Coder: a tag for the function, and one for each parameter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.format import ToolFormat, begins_block, read_block
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.json_text import broken, skip
from lag_integrations.engine.tools.values import read_value, written_args
from lag_integrations.traces.message import ToolCall

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>", re.DOTALL)
# A value ends where another parameter or the end follows, so it may hold closing tags itself.
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>|$))",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class QwenXMLFormat(ToolFormat):
    """``<function=name>`` with ``<parameter=key>`` in it; forced calls in Hermes form."""

    name: str = "qwen_xml"

    def starts(self) -> tuple[str, ...]:
        return ("<tool_call>", "<function=")

    def write(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(map(_write, calls))

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        if (yield from begins_block(held)):
            return (yield from read_block(held))
        start = len("<tool_call>") if held.text.startswith("<tool_call>") else 0
        closer = yield from held.first_of(("</function>", "</tool_call>"), start)
        if closer is None or held.text.startswith("</tool_call>", closer[0]):
            return (yield from broken(held, start, ("</tool_call>",)))
        call = _read(held.text[start : closer[1]], tools)
        return Block((yield from skip(held, closer[1], ("</tool_call>",))), (call,))


def _write(call: ToolCall) -> str:
    parameters = "".join(
        f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in written_args(call).items()
    )
    return f"<tool_call>\n<function={call.name}>\n{parameters}</function>\n</tool_call>"


def _read(text: str, tools: Sequence[dict[str, Any]]) -> ToolCall | InvalidCall:
    function = _FUNCTION.match(text)
    if function is None:
        return InvalidCall(None, text, "The call does not begin with <function=name>.")
    name, position = function.group(1).strip(), function.end()
    args = {}
    while parameter := _PARAMETER.match(text, position):
        key = parameter.group(1).strip()
        args[key] = read_value(parameter.group(2), name, key, tools)
        position = parameter.end()
    if text[position:].strip() != "</function>" or not name:
        return InvalidCall(name or None, text, "The parameters of the call cannot be read.")
    return ToolCall(name=name, args=args)

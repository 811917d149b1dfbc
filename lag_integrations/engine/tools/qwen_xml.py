"""The calls of Qwen3-Coder: a tag for the function, and one for each parameter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block, InvalidCall
from lag_integrations.engine.tools.format import ToolFormat, read_block
from lag_integrations.engine.tools.json_text import broken, skip
from lag_integrations.engine.tools.values import read_value, written_args
from lag_integrations.traces.message import ToolCall

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>", re.DOTALL)
# A value ends where another parameter or the end follows, so it may hold closing tags itself.
_PARAMETER = re.compile(
    r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>(?=\s*(?:<parameter=|</function>|$))",
    re.DOTALL,
)
_JSON = re.compile(r"<tool_call>\s*(?:[{\[`]|$)")


@dataclass(frozen=True, kw_only=True)
class QwenXMLFormat(ToolFormat):
    """``<function=name>`` with ``<parameter=key>`` in it; forced calls in Hermes form."""

    name: str = "qwen_xml"

    def starts(self) -> tuple[str, ...]:
        return ("<tool_call>", "<function=")

    def write(self, calls: Sequence[ToolCall]) -> str:
        return "\n".join(map(_write, calls))

    def read(self, text: str, tools: Sequence[dict[str, Any]], final: bool) -> Block | None:
        if _JSON.match(text):
            return read_block(text, final)
        start = len("<tool_call>") if text.startswith("<tool_call>") else 0
        end = text.find("</function>", start)
        closer = text.find("</tool_call>", start)
        if end < 0 or 0 <= closer < end:
            return broken(text, start, ("</tool_call>",), final)
        call = _read(text[start : end + len("</function>")], tools)
        after = skip(text, end + len("</function>"), ("</tool_call>",), final)
        return None if after is None else Block(after, (call,))


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

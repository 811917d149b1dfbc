"""Calls as JSON objects that hold name and arguments: most models' format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block
from lag_integrations.engine.tools.format import BLOCK, ToolFormat
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.json_text import read_json
from lag_integrations.engine.tools.schema import CallForms, call_schema
from lag_integrations.traces.message import ToolCall

_OBJECTS = ("{", "{ ", "{\n", "{\n  ", "{\n    ")
_FENCES = ("", "```json\n", "```\n")


@dataclass(frozen=True, kw_only=True)
class JsonFormat(ToolFormat):
    """Calls as JSON, each in its frame, all of them in another, or all in one list.

    Attributes:
        begin: Stands before all calls.
        opener: Stands before each call.
        closer: Stands after each call.
        separator: Stands between two calls.
        end: Stands after all calls.
        is_list: The calls of an answer are one JSON array.
        name_key: Key of the tool's name.
        args_key: Key of the arguments.
    """

    begin: str = ""
    opener: str = ""
    closer: str = ""
    separator: str = "\n"
    end: str = ""
    is_list: bool = False
    name_key: str = "name"
    args_key: str = "arguments"

    @property
    def is_marked(self) -> bool:
        return bool((self.begin + self.opener).strip())

    def forms(self, tools: Sequence[dict[str, Any]], *, most: int = 1) -> CallForms:
        schema = call_schema(tools, self.name_key, self.args_key)
        if self.is_list:
            definitions = schema.pop("$defs", None)
            schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": most}
            schema |= {"$defs": definitions} if definitions else {}
        between = None
        if most > 1 and (self.begin or self.end) and not self.is_list:
            between = self.closer + self.separator + self.opener
        return CallForms(self.begin + self.opener, (("", schema),), self.closer + self.end, between)

    def starts(self) -> tuple[str, ...]:
        markers = {(self.begin + self.opener).strip(), self.opener.strip()} - {""}
        if markers:
            return tuple(sorted(markers))
        # Nothing marks a call but its JSON. The keys that models begin it with must be enough: a
        # brace alone would stop every JSON that is streamed as text.
        keys = dict.fromkeys((self.name_key, "name", "type", "function"))
        lists = ("", "[", "[\n  ")
        bare = [
            f'{fence}{bracket}{brace}"{key}"'
            for fence in _FENCES
            for bracket in lists
            for brace in _OBJECTS
            for key in keys
        ]
        return ("<|python_tag|>", *bare)

    def write(self, calls: Sequence[ToolCall]) -> str:
        texts = [
            json.dumps({self.name_key: call.name, self.args_key: call.args}, ensure_ascii=False)
            for call in calls
        ]
        if self.is_list:
            return f"{self.begin}[{', '.join(texts)}]{self.end}"
        framed = [self.opener + text + self.closer for text in texts]
        return self.begin + self.separator.join(framed) + self.end

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        opening = (self.begin + self.opener).strip()
        markers = {opening, self.opener.strip(), "<|python_tag|>"} - {""}
        marker = max(
            (mark for mark in markers if held.text.startswith(mark)), key=len, default=None
        )
        if marker is None:
            names = [tool["function"]["name"] for tool in tools]
            return read_json(held, 0, (), is_marked=False, names=names)
        closers = [part.strip() for part in (self.closer, self.end) if part.strip()]
        return read_json(held, len(marker), closers)


HERMES = JsonFormat(name="hermes", opener=BLOCK[0], closer=BLOCK[1])
"""The default: the form that most models have seen, with instructions in the system message."""

LLAMA = JsonFormat(name="llama", args_key="parameters")
"""Llama 3: nothing but the JSON object."""

GRANITE = JsonFormat(name="granite", begin="<|tool_call|>", is_list=True)
"""Granite 3: its template shows tools, but cannot show calls."""

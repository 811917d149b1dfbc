"""Calls with the name outside of the JSON, as of DeepSeek, Mistral (v11 and later), Functionary."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block
from lag_integrations.engine.tools.format import ToolFormat
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.json_text import read_named
from lag_integrations.engine.tools.schema import CallForms, named_calls
from lag_integrations.traces.message import ToolCall

_NAME = re.compile(r"\s*([^\s<>\[\](){}|`]+)")


@dataclass(frozen=True, kw_only=True)
class NamedFormat(ToolFormat):
    """Calls as a name and a JSON object of arguments.

    Attributes:
        begin: Stands before all calls.
        opener: Stands before a name.
        middle: Stands between name and arguments.
        closer: Stands after the arguments.
        separator: Stands between two calls.
        end: Stands after all calls.
    """

    begin: str = ""
    opener: str
    middle: str
    closer: str = ""
    separator: str = ""
    end: str = ""

    @property
    def is_marked(self) -> bool:
        return True

    def forms(self, tools: Sequence[dict[str, Any]], *, most: int = 1) -> CallForms:
        many = most > 1 and (self.begin or self.end)
        return CallForms(
            self.begin + self.opener,
            named_calls(tools, self.middle),
            self.closer + self.end,
            self.closer + self.separator + self.opener if many else None,
        )

    def starts(self) -> tuple[str, ...]:
        return tuple(sorted(self._markers()))

    def write(self, calls: Sequence[ToolCall]) -> str:
        texts = [
            f"{self.opener}{call.name}{self.middle}"
            f"{json.dumps(call.args, ensure_ascii=False)}{self.closer}"
            for call in calls
        ]
        return self.begin + self.separator.join(texts) + self.end

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        start = max(len(mark) for mark in self._markers() if held.text.startswith(mark))
        closers = [*self.closer.split(), *self.end.split()]
        return read_named(held, start, _NAME, closers, self.opener.strip())

    def _markers(self) -> set[str]:
        return {(self.begin + self.opener).strip(), self.opener.strip()}

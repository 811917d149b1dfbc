"""The calls of gpt-oss: messages of the commentary channel to a function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block
from lag_integrations.engine.tools.format import ToolFormat
from lag_integrations.engine.tools.held_text import HeldText, Reading
from lag_integrations.engine.tools.json_text import read_named
from lag_integrations.engine.tools.schema import CallForms, named_calls
from lag_integrations.traces.message import ToolCall

_NAME = re.compile(r".*?to=functions\.([^\s<]*)", re.DOTALL)
_STARTS = tuple(
    before + header
    for before in ("", "<|start|>assistant")
    for header in (
        "<|channel|>commentary to=functions.",
        "<|channel|>analysis to=functions.",
        " to=functions.",
    )
)
_CLOSERS = ("<|call|>", "<|end|>", "<|return|>")


@dataclass(frozen=True, kw_only=True)
class HarmonyFormat(ToolFormat):
    """Harmony's calls; `reasoning.ChannelReader` reads the other channels."""

    name: str = "harmony"
    says: str = "<|channel|>final<|message|>"

    def starts(self) -> tuple[str, ...]:
        return _STARTS

    def special_tokens(self, known: Iterable[str]) -> frozenset[str]:
        known = frozenset(known)
        return super().special_tokens(known) | ({"<|end|>"} & known)  # ends a thought

    def forms(self, tools: Sequence[dict[str, Any]], *, most: int = 1) -> CallForms:
        calls = named_calls(tools, " <|constrain|>json<|message|>")
        return CallForms("<|channel|>commentary to=functions.", calls, "<|call|>")

    def write(self, calls: Sequence[ToolCall]) -> str:
        return "<|start|>assistant".join(
            f"<|channel|>commentary to=functions.{call.name} <|constrain|>json<|message|>"
            f"{json.dumps(call.args, ensure_ascii=False)}<|call|>"
            for call in calls
        )

    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        start = len("<|start|>") if held.text.startswith("<|start|>") else 0
        return read_named(held, start, _NAME, _CLOSERS, "<|start|>")

"""How a model is shown tools, how it writes calls of them, and how these are read back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lag_integrations.engine.tools.events import Block
from lag_integrations.engine.tools.held_text import SPACE, HeldText, Reading
from lag_integrations.engine.tools.json_text import read_json
from lag_integrations.engine.tools.schema import CallForms, call_schema
from lag_integrations.traces.message import Message, ToolCall

BLOCK = ("<tool_call>\n", "\n</tool_call>")
"""Around a call in Hermes form: the default, and how a forced call is written in formats whose
arguments are not JSON (their ``read`` understands it, too)."""


@dataclass(frozen=True, kw_only=True)
class ToolFormat(ABC):
    """A tool format.

    Attributes:
        name: What the format is called.
        shows_tools: The chat template itself renders the tools. Where it does not, it must not be
            given any, and `instructions` belong into the system message.
        shows_calls: The chat template renders the ``tool_calls`` of an assistant message. Where it
            does not, `write` gives the text that stands for them.
        shows_tool_results: The chat template renders messages of the role ``tool`` in a way the
            model was trained on. Where it does not, `tool_result_text` belongs into a user turn.
        arguments_as_text: The template wants a call's arguments as JSON text, not as a mapping.
        says: What the model writes before what it says, where it answers in channels.
    """

    name: str
    shows_tools: bool = False
    shows_calls: bool = False
    shows_tool_results: bool = False
    arguments_as_text: bool = False
    says: str = ""

    @abstractmethod
    def starts(self) -> tuple[str, ...]:
        """Return the texts that begin a call; one may hold another only at its end."""

    @abstractmethod
    def write(self, calls: Sequence[ToolCall]) -> str:
        """Write calls as the model would."""

    @abstractmethod
    def read(self, held: HeldText, tools: Sequence[dict[str, Any]]) -> Reading[Block]:
        """Read the calls at the beginning of a text.

        Args:
            held: A text that begins with one of `starts`.
            tools: The tools, for formats that do not write types.

        Returns:
            What stands there, as soon as it is the same whatever follows in the text.
        """

    @property
    def is_marked(self) -> bool:
        """Whether the opening of `forms` begins the model's own calls, and nothing else.

        If so, calls that it makes of its own accord can be held to their schemas, too.
        """
        return False

    def forms(self, tools: Sequence[dict[str, Any]], *, most: int = 1) -> CallForms:
        """Return how calls of these tools are written when they are held to a grammar.

        Args:
            tools: The tools.
            most: Calls that an answer may hold; more than one need not be possible.
        """
        return CallForms(BLOCK[0], (("", call_schema(tools, "name", "arguments")),), BLOCK[1])

    def instructions(self, tools: Sequence[dict[str, Any]]) -> str:
        """Write the text that shows the tools; ``""`` if the template does."""
        if self.shows_tools or not tools:
            return ""
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        example = self.write([ToolCall(name="tool-name", args={"argument": "value"})])
        return (
            f"You can call these tools:\n{listed}\n"
            f"To call a tool, write exactly this, with its name and its arguments:\n{example}\n"
            "If no tool is needed, answer directly."
        )

    def special_tokens(self, known: Iterable[str]) -> frozenset[str]:
        """Return the special tokens that calls are made of: decoding must keep them."""
        example = self.write([ToolCall(name="a", args={"b": "c"}), ToolCall(name="d")])
        forms = self.forms([{"function": {"name": "a"}}])
        text = " ".join([*self.starts(), forms.opening, forms.closing, self.says, example])
        return frozenset(token for token in known if token and token in text)


def begins_block(held: HeldText) -> Reading[bool]:
    """Tell whether a text begins with a call in Hermes form, of which JSON is a part."""
    if not held.text.startswith("<tool_call>"):
        return False
    begin = yield from held.past(SPACE, len("<tool_call>"))
    return held.text[begin : begin + 1] in ("{", "[", "`", "")


def read_block(held: HeldText) -> Reading[Block]:
    """Read a call in Hermes form from a text that begins with ``<tool_call>``."""
    return read_json(held, len("<tool_call>"), ("</tool_call>",))


def tool_result_text(message: Message) -> str:
    """Write a tool's result as text of a user turn, for templates that know no tool results."""
    return f"<tool_response>\n{message.text}\n</tool_response>"

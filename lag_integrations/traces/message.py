"""Messages of a run, with the tool calls in them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from lag_integrations.traces.storable import StorableModel

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(StorableModel):
    """A call the assistant asked for.

    Attributes:
        name: Name of the tool.
        args: Arguments by name; a string where the model wrote arguments that are not JSON.
        id: Id that the result refers to, where the framework has one.
    """

    name: str
    args: dict[str, JsonValue] | str = Field(default_factory=dict)
    id: str | None = None

    @property
    def text(self) -> str:
        """The call as Python writes it, for people, and models that no template shows it."""
        if isinstance(self.args, str):
            return f"{self.name}({self.args})"
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.args.items())})"


class Message(StorableModel):
    """One step of a run.

    Attributes:
        role: ``system``, ``user``, ``assistant`` or ``tool`` (a tool's result).
        content: Text, or the content blocks a framework delivered, kept as they were.
        tool_calls: Calls of an assistant message.
        tool_call_id: For a tool result, the call it answers.
        name: Name of the tool or speaker.
        status: For a tool result, whether the tool failed.
        id: The framework's message id, if any.
    """

    role: Role
    content: str | list[JsonValue] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    status: Literal["success", "error"] | None = None
    id: str | None = None

    @property
    def text(self) -> str:
        """The text of the content, without blocks that are not text."""
        if isinstance(self.content, str):
            return self.content
        parts: list[str] = []
        for block in self.content:
            if isinstance(block, str):
                parts.append(block)
            elif isinstance(block, dict) and isinstance(block.get("text"), str):
                parts.append(str(block["text"]))
        return "".join(parts)

    @property
    def is_empty(self) -> bool:
        """Whether the message has neither text nor tool calls."""
        return not self.text.strip() and not self.tool_calls

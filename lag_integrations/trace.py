"""What one agent run said and did: the ground truth from which everything else is derived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby
from typing import Any, Literal
from uuid import uuid4

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from lag_integrations.errors import TraceError

Role = Literal["system", "user", "assistant", "tool"]
Outcome = Literal["success", "failure", "unknown"]

# What chat APIs and frameworks call the four roles.
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "AIMessageChunk": "assistant",
    "tool": "tool",
    "function": "tool",
}


PLACE = "lag_place"
"""Metadata key of what a trace is kept as, where it is kept as something (an item of a store):
traces with equal content in two places are two."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, fields: Any) -> Any:
        return _without_surrogates(fields)


class ToolCall(_Frozen):
    """A call the assistant asked for.

    Attributes:
        name: Name of the tool.
        args: Arguments by name; a string where the model wrote arguments that are not JSON.
        id: Id that the result refers to, where the framework has one.
    """

    name: str
    args: dict[str, JsonValue] | str = Field(default_factory=dict)
    id: str | None = None


class Message(_Frozen):
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
        """The text of the content; blocks that are not text are left out."""
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
        """Whether the message neither says nor does anything."""
        return not self.text.strip() and not self.tool_calls


class Trace(_Frozen):
    """An agent run: ordered messages, the task, the outcome.

    Attributes:
        messages: The steps in order; at least one of them says or does something.
        task: What was asked; with the last response it is what recall searches.
        outcome: Whether the run solved its task, as far as anyone knows.
        id: Unique id of this run (not of its content, see `content_hash`).
        started_at: When the run began, with time zone.
        ended_at: When it ended, if it did.
        helped_by: Ids of the logs that were recalled into this run (its lineage).
        metadata: Anything else, as JSON.
        version: Version of this JSON layout.
    """

    messages: tuple[Message, ...]
    task: str
    outcome: Outcome = "unknown"
    id: str = Field(default_factory=lambda: uuid4().hex)
    started_at: AwareDatetime = Field(default_factory=lambda: datetime.now(timezone.utc))
    ended_at: AwareDatetime | None = None
    helped_by: tuple[str, ...] = ()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    version: Literal[1] = 1

    @field_validator("messages")
    @classmethod
    def _says_something(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        if all(message.is_empty for message in messages):
            raise ValueError("the trace is empty: give it at least one message with content")
        return messages

    @classmethod
    def from_messages(
        cls,
        messages: Iterable[Any],
        *,
        task: str | None = None,
        outcome: Outcome = "unknown",
        **fields: Any,
    ) -> Trace:
        """Build a trace from chat messages.

        Results of tools are put in the order of the calls they answer; see `in_call_order`.

        Args:
            messages: Dicts of the usual chat form (``role``, ``content``, optional ``tool_calls``,
                ``tool_call_id``, ``name``), LangChain messages, or `Message` objects, in order.
            task: What was asked; the first user message by default.
            outcome: ``success``, ``failure`` or ``unknown``.
            **fields: Any other attribute of `Trace`.

        Raises:
            TraceError: A message has no known role or a malformed content, or all are empty.
        """
        try:
            steps = tuple(in_call_order([as_message(message) for message in messages]))
            if task is None:
                task = next((step.text for step in steps if step.role == "user"), "")
            return cls(messages=steps, task=task, outcome=outcome, **fields)
        except ValidationError as error:
            raise TraceError(f"Not a valid trace: {_reasons(error)}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Trace:
        """Read what `to_json` wrote.

        Raises:
            TraceError: The text is not the JSON of a trace.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise TraceError(f"Not the JSON of a trace: {_reasons(error)}") from None

    def to_json(self) -> str:
        """The trace as JSON; `from_json` gives an equal trace."""
        return self.model_dump_json()

    @property
    def last_response(self) -> str:
        """Text of the last assistant message that has any; ``""`` if there is none."""
        for message in reversed(self.messages):
            if message.role == "assistant" and message.text.strip():
                return message.text
        return ""

    def require_response(self) -> None:
        """Refuse a trace that holds nothing to reuse.

        Raises:
            TraceError: The assistant neither said nor did anything in it.
        """
        if not any(step.role == "assistant" and not step.is_empty for step in self.messages):
            raise TraceError(
                "The trace has no assistant response, so there is no computation to reuse; add "
                "traces of runs in which the model answered."
            )

    @property
    def content_hash(self) -> str:
        """SHA-256 over task and messages (ids and times left out): equal runs, equal hash.

        Over the place in the metadata, too, if there is one.
        """
        content: dict[str, Any] = {
            "task": self.task,
            "messages": [
                {
                    "role": message.role,
                    "content": message.content,
                    "tool_calls": [(call.name, call.args) for call in message.tool_calls],
                    "name": message.name,
                    "status": message.status,
                }
                for message in self.messages
            ],
        }
        if PLACE in self.metadata:
            content["place"] = self.metadata[PLACE]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Put results of tools in the order of the calls they answer.

    Tools that run in parallel end in any order, and most chat templates show no ids: a model tells
    by its place which call a result answers.

    Only results that follow each other change places. First come those of the latest calls. Those
    of earlier messages' calls follow, as of an agent whose tool is an agent. Last come those that
    answer no call before them. A result without an id keeps its place.
    """
    places: dict[str, tuple[int, int]] = {}
    ordered: list[Message] = []
    for turn, (role, group) in enumerate(groupby(messages, key=lambda message: message.role)):
        steps = list(group)
        if role == "tool":
            named = [step for step in steps if step.tool_call_id]
            named.sort(key=lambda step: places.get(step.tool_call_id or "", (1, 0)))
            following = iter(named)
            steps = [next(following) if step.tool_call_id else step for step in steps]
        else:
            ids = dict.fromkeys(call.id for step in steps for call in step.tool_calls if call.id)
            places.update((id, (-turn, number)) for number, id in enumerate(ids))
        ordered += steps
    return ordered


def as_message(source: Any) -> Message:
    """A message from a dict of the usual chat form, a LangChain message, or a `Message`.

    Raises:
        TraceError: It has no known role, or its content is malformed.
    """
    try:
        return _as_message(source)
    except ValidationError as error:
        raise TraceError(f"Not a valid message: {_reasons(error)}") from None
    except TypeError as error:
        raise TraceError(f"Not a valid message: {error}.") from None


def _as_message(source: Any) -> Message:
    if isinstance(source, Message):
        return source
    if isinstance(source, Mapping):
        get = source.get
        role = source.get("role", source.get("type"))
    else:
        # LangChain messages, by shape: this module knows no framework.
        def get(name: str, default: Any = None) -> Any:
            return getattr(source, name, default)

        role = getattr(source, "type", None)
        if role == "chat":
            role = getattr(source, "role", None)
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(sorted(set(_ROLES.values())))
        raise TraceError(f"A message has the role {role!r}; known roles are {known}.")
    calls = [_tool_call(call) for call in get("tool_calls") or ()]
    for call in get("invalid_tool_calls") or ():
        calls.append(
            ToolCall(name=call.get("name") or "", args=call.get("args") or "", id=call.get("id"))
        )
    content = get("content")
    return Message.model_validate(
        {
            "role": _ROLES[role],
            "content": "" if content is None else content,
            "tool_calls": calls,
            "tool_call_id": get("tool_call_id"),
            "name": get("name"),
            "status": get("status") if _ROLES[role] == "tool" else None,
            "id": get("id"),
        }
    )


def _tool_call(call: Any) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    if not isinstance(call, Mapping):
        raise TraceError(f"A tool call is a {type(call).__name__}; it must be a mapping.")
    function = call.get("function")
    if isinstance(function, Mapping):  # OpenAI's form, arguments as JSON text
        name, args = function.get("name"), function.get("arguments", {})
    else:
        name, args = call.get("name"), call.get("args", {})
    if isinstance(args, str):
        try:
            parsed = json.loads(args)
            args = parsed if isinstance(parsed, dict) else args
        except json.JSONDecodeError:
            pass
    return ToolCall.model_validate({"name": name, "args": args, "id": call.get("id")})


def _without_surrogates(value: Any) -> Any:
    """Halves of a UTF-16 pair, which models and JSON can hold, but no file or database can."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    elif isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        return type(value)(_without_surrogates(item) for item in value)
    return value


def _reasons(error: ValidationError) -> str:
    # Without the input values: a trace must not leak into logs by way of an error message.
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'trace'}: {item['msg']}" for item in error.errors()
    )

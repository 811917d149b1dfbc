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
Outcome = Literal["success", "failure", "incomplete", "unknown"]

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
    "chatbot": "assistant",
    "model": "assistant",
}


PLACE = "lag_place"
"""Metadata key of what a trace is kept as, where it is kept as something (an item of a store):
traces with equal content in two places are two."""


SCOPE = "lag_scope"
"""Metadata key of the names of those metadata that say whose run it was, and of what kind: traces
with equal content that differ in them are two."""


_NESTED = 100
"""Levels of nested JSON in a trace; beyond some 200, parsers refuse to read what was written."""
_ABOVE = 10
"""Levels that a trace has above the arguments of a call, at most."""
_BITS = 13_000
"""Of an integer in a trace, some 3,900 digits; Python reads no more than 4,300."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _can_be_written_and_read(cls, fields: Any) -> Any:
        return _storable(fields)


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
        earlier: What user and assistant said before the run, where it is a turn of a conversation:
            the task may refer to it. It is read before the messages, but is no part of the segment.
        outcome: Whether the run solved its task, as far as anyone knows; ``incomplete`` if it was
            stopped on its way: cancelled, or cut off for length.
        id: Unique id of this run (not of its content, see `content_hash`).
        started_at: When the run began, with time zone.
        ended_at: When it ended, if it did.
        helped_by: Ids of the logs that were recalled into this run (its lineage).
        metadata: Anything else, as JSON.
        version: Version of this JSON layout.
    """

    messages: tuple[Message, ...]
    task: str
    earlier: tuple[Message, ...] = ()
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
                ``tool_call_id``, ``name``), messages of LangChain or LlamaIndex, or `Message`
                objects, in order.
            task: What was asked; the first user message by default.
            outcome: ``success``, ``failure``, ``incomplete`` or ``unknown``.
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

    @property
    def has_response(self) -> bool:
        """Whether the assistant said or did anything."""
        return any(step.role == "assistant" and not step.is_empty for step in self.messages)

    def require_response(self) -> None:
        """Refuse a trace that holds nothing to reuse, but for a record of a task that failed.

        Raises:
            TraceError: The assistant neither said nor did anything in it.
        """
        is_record = self.outcome == "failure" and self.task.strip()
        if not self.has_response and not is_record:
            raise TraceError(
                "The trace has no assistant response, so there is no computation to reuse; add "
                "traces of runs in which the model answered."
            )

    @property
    def content_hash(self) -> str:
        """SHA-256 over what was said, without ids and times: equal runs, equal hash.

        Over the place in the metadata, too, if there is one, and over those in its scope.
        """
        content = self._content
        scope = self.metadata.get(SCOPE)
        if isinstance(scope, list):
            content["scope"] = {str(name): self.metadata.get(str(name)) for name in scope}
        return _sha256(content)

    @property
    def unscoped_hash(self) -> str:
        """As `content_hash`, but whosever run it was."""
        return _sha256(self._content)

    @property
    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "task": self.task,
            "messages": [_content(message) for message in self.messages],
        }
        if self.earlier:
            content["earlier"] = [_content(message) for message in self.earlier]
        if PLACE in self.metadata:
            content["place"] = self.metadata[PLACE]
        return content


def _sha256(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _content(message: Message) -> dict[str, Any]:
    """What of a message makes runs equal."""
    return {
        "role": message.role,
        "content": message.content,
        "tool_calls": [(call.name, call.args) for call in message.tool_calls],
        "name": message.name,
        "status": message.status,
    }


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
    """A message from a dict of the usual chat form, one of LangChain or LlamaIndex, or a `Message`.

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
    if hasattr(source, "additional_kwargs") and hasattr(source, "blocks"):
        source = _of_llama_index(source)
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


def _of_llama_index(source: Any) -> dict[str, Any]:
    """A LlamaIndex message as a dict, by shape."""
    extra = source.additional_kwargs
    calls = [
        {"name": block.tool_name, "args": block.tool_kwargs, "id": block.tool_call_id}
        for block in source.blocks
        if block.block_type == "tool_call"
    ]
    return {
        "role": source.role.value,
        "content": source.content,
        "tool_calls": calls or extra.get("tool_calls"),
        "tool_call_id": extra.get("tool_call_id"),
        "name": extra.get("name"),
    }


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
    args = _arguments(args)
    return ToolCall.model_validate({"name": name, "args": args, "id": call.get("id")})


def _arguments(args: Any) -> Any:
    """Arguments by name; as text where they are no JSON object, or beyond what can be kept."""
    try:
        if isinstance(args, str):
            parsed = json.loads(args)
            return _storable(parsed, _ABOVE) if isinstance(parsed, dict) else args
        return _storable(args, _ABOVE)
    except (ValueError, RecursionError):
        pass
    try:
        return args if isinstance(args, str) else json.dumps(args)
    except (TypeError, ValueError, RecursionError):
        return ""


def _storable(value: Any, depth: int = 0) -> Any:
    """A value as it can be written and read again.

    Halves of a UTF-16 pair, which models and JSON can hold, but no file or database can, are
    replaced.

    Raises:
        ValueError: It is nested too deep, or holds an integer of too many digits.
    """
    if isinstance(value, str):
        return _without_surrogates(value)
    if depth > _NESTED:
        raise ValueError(f"it is nested more than {_NESTED} levels deep")
    if isinstance(value, Mapping):
        return {
            _storable(key, depth + 1): _storable(item, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(_storable(item, depth + 1) for item in value)
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise ValueError("an integer has too many digits")
    return value


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _reasons(error: ValidationError) -> str:
    # Without the input values: a trace must not leak into logs by way of an error message.
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'trace'}: {item['msg']}" for item in error.errors()
    )

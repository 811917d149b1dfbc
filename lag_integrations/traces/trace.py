"""Traces: what one agent run said and did. Everything else is derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Literal
from uuid import uuid4

from pydantic import AwareDatetime, Field, JsonValue, ValidationError, field_validator

from lag_integrations.errors import TraceError
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.message_order import in_call_order
from lag_integrations.traces.reserved_metadata import PLACE, SCOPE
from lag_integrations.traces.storable import StorableModel, describe

Outcome = Literal["success", "failure", "incomplete", "unknown"]


class Trace(StorableModel):
    """One agent run: ordered messages, the task, the outcome.

    Attributes:
        messages: The steps in order; at least one of them says or does something.
        task: What was asked; with the last response it is what recall searches.
        earlier: What user and assistant said before the run, if it is a turn of a conversation.
            The task may refer to it. It is read before the messages, but is no part of the segment.
        outcome: Whether the run solved its task, as far as anyone knows; ``incomplete`` if it was
            cancelled, or cut off for length.
        id: Unique id of this run (not of its content, see `content_hash`).
        started_at: When the run began, with time zone.
        ended_at: When it ended, if it did.
        helped_by: Ids of the logs that were recalled into this run.
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
    def _refuse_empty(cls, messages: tuple[Message, ...]) -> tuple[Message, ...]:
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

        Tool results are put in the order of the calls they answer; see `in_call_order`.

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
            raise TraceError(f"Not a valid trace: {describe(error)}") from None

    @classmethod
    def from_json(cls, text: str | bytes) -> Trace:
        """Parse what `to_json` returned.

        Raises:
            TraceError: The text is not the JSON of a trace.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise TraceError(f"Not the JSON of a trace: {describe(error)}") from None

    def to_json(self) -> str:
        """Return the trace as JSON, from which `from_json` makes an equal trace."""
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
        """Refuse a trace without a response, unless it records a task that failed.

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
        """SHA-256 of task, messages and earlier turns, without ids and times.

        It covers the metadata `PLACE`, and those that `SCOPE` names. Equal runs have equal hashes.
        """
        content = self._content
        scope = self.metadata.get(SCOPE)
        if isinstance(scope, list):
            content["scope"] = {str(name): self.metadata.get(str(name)) for name in scope}
        return _sha256(content)

    @property
    def unscoped_hash(self) -> str:
        """The `content_hash` without the metadata that `SCOPE` names."""
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
    """Return the parts of a message that make runs equal."""
    return {
        "role": message.role,
        "content": message.content,
        "tool_calls": [(call.name, call.args) for call in message.tool_calls],
        "name": message.name,
        "status": message.status,
    }

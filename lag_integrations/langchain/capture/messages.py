"""Readers of what LangChain passes to callbacks: messages, outputs, documents."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from lag_integrations.capture.outcomes import STOP_KEYS, is_length_stop
from lag_integrations.errors import TraceError
from lag_integrations.memory.recognition import is_log
from lag_integrations.traces.message import Message, Role
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.sources import Source, hash_of

_TASK_KEYS = ("question", "input", "query", "task", "messages")
"""Input keys under which chains commonly take their question."""
_ANSWER_KEYS = ("output", "answer", "result", "response", "text")
"""Output keys under which chains commonly return their answer."""


def role_of(message: BaseMessage) -> str:
    """Return the type of a message, or of a chunk of one: ``human``, ``ai``, …"""
    return message.type.removesuffix("MessageChunk").lower()


def key_of(message: BaseMessage) -> Hashable:
    """Return a key that is equal for messages of the same content, whatever their ids."""
    if isinstance(message, ToolMessage) and message.tool_call_id:
        return ("tool", message.tool_call_id)
    calls = message.tool_calls if isinstance(message, AIMessage) else ()
    names = tuple((call["name"], call["id"]) for call in calls)
    return (role_of(message), str(message.text), names)


def as_step(message: BaseMessage) -> Message | None:
    """Return a message as a step of a trace, without what was recalled into it.

    A message that cannot be in a trace becomes its text.

    Returns:
        None if the message was added only for what was recalled.
    """
    lag = _lag(message.additional_kwargs)
    if message.type == "system" and "system" in lag:
        text = lag["system"]
        return None if text is None else Message(role="system", content=text, id=message.id)
    try:
        step = as_message(message)
    except TraceError:
        role: Role = "assistant" if isinstance(message, AIMessage) else "user"
        return Message(role=role, content=str(message.text))
    if step.role != "tool":
        return step
    changes: dict[str, Any] = {"tool_call_id": step.tool_call_id or None}
    if ids := log_ids_of(message):
        changes["content"] = f"[recalled logs: {', '.join(ids)}]"
    return step.model_copy(update=changes)


def log_ids_of(message: BaseMessage) -> list[str]:
    """Return the ids of the logs recalled into a message, or into the call that it answers."""
    found = _lag(message.additional_kwargs) or _lag(message.response_metadata)
    if not found and isinstance(message, ToolMessage):
        found = _lag(message.artifact)
    return [key for key in found.get("log_ids") or () if isinstance(key, str)]


def _lag(holder: Any) -> Mapping[str, Any]:
    lag = holder.get("lag") if isinstance(holder, Mapping) else None
    return lag if isinstance(lag, Mapping) else {}


def was_cut_off(message: BaseMessage) -> bool:
    """Return whether an answer ended at the limit of its length."""
    metadata = message.response_metadata
    reasons = [metadata.get(key) for key in STOP_KEYS]
    if isinstance(details := metadata.get("incomplete_details"), Mapping):
        reasons.append(details.get("reason"))
    return is_length_stop(reasons)


def is_unreadable(message: BaseMessage) -> bool:
    """Return whether an answer holds a tool call that cannot be parsed."""
    return isinstance(message, AIMessage) and bool(message.invalid_tool_calls)


def log_id_of(document: Document) -> str | None:
    """Return the log id of a document; None if the document is no log."""
    log_id = document.metadata.get("log_id")  # maybe a document's own field
    same = log_id is not None and log_id == document.id
    return log_id if same and is_log(log_id, document.page_content) else None


def source_of(document: Document) -> Source:
    """Return the source of a document, which is mostly a chunk of it."""
    name = document.metadata.get("source")
    names = (name,) if isinstance(name, str) else ()
    return Source(document.id, names, hash_of(document.page_content))


def messages_in(value: Any) -> list[BaseMessage]:
    """Return the messages in a graph's state, in an update of it, or in a list."""
    if isinstance(value, BaseMessage):
        return [value]
    if not isinstance(value, Mapping | list | tuple):
        value = getattr(value, "update", None)  # a Command of LangGraph
    if isinstance(value, Mapping):
        value = value.get("messages")
    if isinstance(value, BaseMessage):
        return [value]
    if isinstance(value, list | tuple):
        return [message for message in value if isinstance(message, BaseMessage)]
    return []


def answer_texts(outputs: Any) -> Iterable[str]:
    """Yield the texts in a chain's outputs that may be its answer."""
    if isinstance(outputs, str):
        yield outputs
    elif isinstance(outputs, Mapping):
        for key in _ANSWER_KEYS:
            if isinstance(outputs.get(key), str):
                yield outputs[key]


def asks_in_messages(inputs: Any) -> bool:
    """Return whether the question in a run's inputs is the last of their messages."""
    if not isinstance(inputs, Mapping):
        return bool(messages_in(inputs))
    key = next((key for key in _TASK_KEYS if key in inputs and task_of(inputs[key])), None)
    return key == "messages"


def task_of(inputs: Any) -> str | None:
    """Return the question in a chain's inputs; None if they hold none."""
    if isinstance(inputs, str):
        return inputs or None
    if isinstance(inputs, Mapping):
        for key in _TASK_KEYS:
            if key in inputs and (task := task_of(inputs[key])):
                return task
        texts = [value for value in inputs.values() if isinstance(value, str)]
        return (texts[0] or None) if len(inputs) == 1 and texts else None
    if isinstance(inputs, BaseMessage):
        return _user_text(inputs)
    if isinstance(inputs, Sequence):
        for item in reversed(inputs):
            if isinstance(item, BaseMessage | Mapping | tuple) and (text := _user_text(item)):
                return text
    return None


def _user_text(item: Any) -> str | None:
    if isinstance(item, tuple) and len(item) == 2:  # ("human", "…")
        item = {"role": item[0], "content": item[1]}
    try:
        step = as_step(item) if isinstance(item, BaseMessage) else as_message(item)
    except TraceError:
        return None
    return step.text if step is not None and step.role == "user" else None

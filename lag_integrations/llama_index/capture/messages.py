"""Reads for a trace what LlamaIndex hands to instrumentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import BoundArguments
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.chat_engine.types import AgentChatResponse, StreamingAgentChatResponse
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.tools.types import ToolOutput
from llama_index.core.workflow import Event, StartEvent, StopEvent
from pydantic import BaseModel

from lag_integrations.capture.outcomes import STOP_KEYS, is_length_stop
from lag_integrations.errors import TraceError
from lag_integrations.llama_index.messages import ROLES, calls_in, text_in
from lag_integrations.memory.recognition import is_log
from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.provenance import CODE_RESULT
from lag_integrations.traces.sources import Source, hash_of

# Names that engines and workflows commonly have for their question.
_TASK_KEYS = (
    "user_msg",
    "message",
    "str_or_query_bundle",
    "query_bundle",
    "query",
    "query_str",
    "question",
    "input",
    "task",
    "chat_history",
    "messages",
)
# And their answer.
_ANSWER_KEYS = ("response", "output", "answer", "result", "text")
# Where readers say what a document is of: often its id is a new one whenever it is read.
_FILE_KEYS = ("file_path", "url")
NO_ANSWER = "Empty Response"
"""What a query engine answers if it found nothing, or if an LLM said nothing."""
_OBSERVATION = "Observation: "
"""How a ``ReActAgent`` begins the user message that holds a result."""


Key = tuple[Any, ...]
"""Role and content of a message."""


def key_of(message: ChatMessage) -> Key:
    """Return what two equal messages have in common. Cheap: a prompt repeats all messages."""
    role = ROLES.get(message.role, "user")
    if role == "tool" and (call_id := message.additional_kwargs.get("tool_call_id")):
        return ("tool", call_id)
    calls = _calls_in(message) if role == "assistant" else ()
    return (role, _text_in(message), tuple((call.name, call.id) for call in calls))


def as_step(message: ChatMessage) -> Message:
    """Return a message as a step of a trace; what has no place in one is named in brackets."""
    role = ROLES.get(message.role, "user")
    text = _text_in(message)
    name = message.additional_kwargs.get("name")
    call_id = message.additional_kwargs.get("tool_call_id")
    try:
        return as_message(
            {
                "role": role,
                "content": text,
                "tool_calls": _calls_in(message) if role == "assistant" else (),
                "invalid_tool_calls": message.additional_kwargs.get("invalid_tool_calls"),
                "tool_call_id": call_id if role == "tool" else None,
                "name": name,
            }
        )
    except TraceError:
        return as_message({"role": role, "content": text})


def message_of(response: ChatResponse | CompletionResponse) -> ChatMessage:
    """Return the message of a model's response."""
    if isinstance(response, ChatResponse):
        return response.message
    return ChatMessage(role=MessageRole.ASSISTANT, content=response.text)


def log_ids_of(response: ChatResponse | CompletionResponse) -> list[str]:
    """Return the ids of the logs that were injected for a response."""
    lag = response.raw.get("lag") if isinstance(response.raw, Mapping) else None
    ids = lag.get("log_ids") if isinstance(lag, Mapping) else None
    return [key for key in ids or () if isinstance(key, str)]


def was_cut_off(response: ChatResponse | CompletionResponse) -> bool:
    """Return whether a response ended at the limit of its length."""
    reasons = []
    for holder in (response.raw, response.additional_kwargs):
        for place in (holder, _first(holder, "choices"), _first(holder, "candidates")):
            reasons += [_get(place, key) for key in STOP_KEYS]
    reasons.append(_get(_get(response.raw, "incomplete_details"), "reason"))
    return is_length_stop(reasons)


def is_unreadable(message: ChatMessage) -> bool:
    """Return whether a message holds a call that cannot be read, and so cannot be made."""
    return bool(message.additional_kwargs.get("invalid_tool_calls"))


def result_of(output: ToolOutput, call_id: str | None) -> Message:
    """Return the result of a tool as a step of a trace."""
    return Message(
        role="tool",
        content=output.content or "",
        tool_call_id=call_id,
        name=output.tool_name,
        status="error" if output.is_error else "success",
    )


def is_observation(text: str) -> bool:
    """Return whether a user message is an agent's, and holds the result of a tool or its code."""
    return text.startswith((CODE_RESULT, _OBSERVATION))


def is_resumed(arguments: BoundArguments) -> bool:
    """Return whether a workflow goes on with its context: it has no event to begin with."""
    return arguments.arguments.get("start_event", "") is None


def task_of(arguments: BoundArguments) -> str | None:
    """Return the question that a method was called with; None where its prompts have to tell."""
    named = dict(arguments.arguments)
    named.update(named.pop("kwargs", None) or {})
    for value in named.values():
        if isinstance(value, StartEvent):
            return _task_in_event(value)
    return _task_in(named)


def _task_in_event(event: Event) -> str | None:
    fields = _fields(event)
    if task := _task_in(fields):
        return task
    texts = [value for value in fields.values() if isinstance(value, str)]
    return (texts[0] or None) if len(texts) == 1 else None


def _task_in(fields: Mapping[str, Any]) -> str | None:
    for key in _TASK_KEYS:
        if task := _question_text(fields.get(key)):
            return task
    return None


def _question_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, QueryBundle):
        return value.query_str or None
    if isinstance(value, ChatMessage):
        return _text_in(value) if value.role == MessageRole.USER else None
    if isinstance(value, list | tuple):
        texts = (_question_text(item) for item in reversed(value))
        return next(filter(None, texts), None)
    return None


def answer_of(result: Any) -> str | None:
    """Return the text with which a run answered; None where its last message has to tell."""
    if isinstance(result, str):
        return result
    if isinstance(result, Response | AgentChatResponse | StreamingAgentChatResponse):
        return result.response
    if isinstance(result, PydanticResponse):
        return None if result.response is None else result.response.model_dump_json()
    if isinstance(result, StreamingResponse | AsyncStreamingResponse):
        return result.response_txt
    if isinstance(result, ChatMessage):
        return _text_in(result)
    if isinstance(result, StopEvent):
        if result.result is not None:
            return answer_of(result.result)
        fields = _fields(result)
    elif isinstance(result, Event):  # an agent's output
        return answer_of(getattr(result, "response", None))
    elif isinstance(result, Mapping):
        fields = dict(result)
    else:
        return None
    for key in _ANSWER_KEYS:
        if isinstance(value := fields.get(key), str):
            return value
    texts = [value for value in fields.values() if isinstance(value, str)]
    return texts[0] if len(texts) == 1 else None


def sources_of(result: Any) -> list[Source]:
    """Return the nodes that a query engine or chat engine answered from."""
    kinds = (Response, PydanticResponse, StreamingResponse, AsyncStreamingResponse)
    if not isinstance(result, (*kinds, AgentChatResponse, StreamingAgentChatResponse)):
        return []
    return node_sources(result.source_nodes)


def node_sources(nodes: Iterable[NodeWithScore]) -> list[Source]:
    """Return nodes as sources; without those that are logs."""
    return [_source(found) for found in nodes if not _is_log(found)]


def logs_in(nodes: Iterable[NodeWithScore]) -> dict[str, str]:
    """Return the ids of the logs that are among nodes, by their text."""
    return {found.node.get_content(): found.node.node_id for found in nodes if _is_log(found)}


def _is_log(found: NodeWithScore) -> bool:
    node = found.node
    log_id = node.metadata.get("log_id")  # maybe a document's own field
    return log_id == node.node_id and is_log(log_id, node.get_content())


def _source(found: NodeWithScore) -> Source:
    node = found.node
    document = node.source_node
    names = [None if document is None else document.node_id]
    names += [node.metadata.get(key) for key in _FILE_KEYS]
    return Source(
        id=node.node_id,
        documents=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        hash=hash_of(node.get_content(MetadataMode.LLM)),
        version=None if document is None else document.hash,
        score=None if found.score is None else float(found.score),
    )


def _fields(event: Event) -> dict[str, Any]:
    declared = {name: getattr(event, name, None) for name in type(event).model_fields}
    return {**declared, **dict(event.items())}  # an event also takes what nobody declared


def _text_in(message: ChatMessage) -> str:
    return text_in(message, "[{}]".format)


def _calls_in(message: ChatMessage) -> tuple[ToolCall, ...]:
    try:
        calls = calls_in(message)
        return as_message({"role": "assistant", "tool_calls": calls}).tool_calls if calls else ()
    except (TraceError, ValueError):  # arguments that are no JSON
        blocks = [block for block in message.blocks if isinstance(block, ToolCallBlock)]
        return tuple(
            ToolCall(name=block.tool_name, args=str(block.tool_kwargs), id=block.tool_call_id)
            for block in blocks
        )


def _first(holder: Any, key: str) -> Any:
    items = _get(holder, key)
    return items[0] if isinstance(items, list | tuple) and items else None


def _get(holder: Any, key: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(key)
    return getattr(holder, key, None) if isinstance(holder, BaseModel) else None

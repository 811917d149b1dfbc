"""Conversion between LangChain's messages and the package's, into a model call and out of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    InvalidToolCall,
    ToolCall,
)
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.utils.function_calling import convert_to_json_schema

from lag_integrations.chat.openai_form import MEDIA, media_error, schema_in
from lag_integrations.chat.parts import Part
from lag_integrations.chat.reply import Reply
from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, InvalidCall, Text, new_call_id
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_conversion import as_message


def as_chat(messages: Sequence[BaseMessage]) -> list[Message]:
    """Return a conversation as the package's messages.

    Raises:
        PromptError: It holds images or other media, which a text model cannot read.
        TraceError: A message has an unknown role.
    """
    chat: list[Message] = []
    for message in messages:
        chat += _results(message)
        step = as_message(message)
        if isinstance(step.content, list):
            kinds = {str(block.get("type")) for block in step.content if isinstance(block, dict)}
            if media := kinds & MEDIA:
                raise media_error(media)
        # Anthropic's results stand inside of user messages, which may hold nothing else.
        if not (step.is_empty and chat and chat[-1].role == "tool" and step.role == "user"):
            chat.append(step)
    return chat


def _results(message: BaseMessage) -> Iterator[Message]:
    """Yield the tool results among the content blocks of a user message (Anthropic's form)."""
    if not isinstance(message, HumanMessage) or not isinstance(message.content, list):
        return
    for block in message.content:
        if isinstance(block, dict) and block.get("type") == "tool_result":
            content = block.get("content") or ""
            yield Message(
                role="tool",
                content=content if isinstance(content, str) else list(content),
                tool_call_id=block.get("tool_use_id"),
                status="error" if block.get("is_error") else "success",
            )


def as_ai_message(parts: Iterable[Part], **fields: Any) -> AIMessage:
    """Return a whole answer as one message."""
    text, reasoning = "", ""
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for part in parts:
        if isinstance(part, Text):
            text += part.text
        elif isinstance(part, ReasoningDelta):
            reasoning += part.text
        elif isinstance(part, CallEnded):
            assert isinstance(part.call.args, dict)
            args = dict(part.call.args)
            calls.append(
                ToolCall(name=part.call.name, args=args, id=new_call_id(), type="tool_call")
            )
        else:
            invalid.append(_invalid(part.invalid, new_call_id()))
    return AIMessage(
        content=text,
        additional_kwargs={"reasoning_content": reasoning} if reasoning else {},
        tool_calls=calls,
        invalid_tool_calls=invalid,
        **fields,
    )


def as_chunk(part: Part) -> AIMessageChunk:
    """Return a part of an answer as a chunk."""
    if isinstance(part, Text):
        return AIMessageChunk(content=part.text)
    if isinstance(part, ReasoningDelta):
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": part.text})
    if isinstance(part, CallEnded):
        name, args = part.call.name, json.dumps(part.call.args, ensure_ascii=False)
    else:
        # As a JSON string: LangChain parses merged chunks leniently, and would complete half an
        # object.
        name, args = part.invalid.name or "", json.dumps(part.invalid.args, ensure_ascii=False)
    call = tool_call_chunk(name=name, args=args, id=new_call_id(), index=part.index)
    chunk = AIMessageChunk(content="", tool_call_chunks=[call])
    if not isinstance(part, CallEnded):
        # LangChain derives this from the chunk without the error, and again when it merges chunks.
        chunk.invalid_tool_calls = [_invalid(part.invalid, call["id"])]
    return chunk


def _invalid(call: InvalidCall, id: str | None) -> InvalidToolCall:
    return InvalidToolCall(
        name=call.name, args=call.args, id=id, error=call.error, type="invalid_tool_call"
    )


def response_metadata(reply: Reply, model: str) -> dict[str, Any]:
    """Return the ``response_metadata`` of an answer, with the report of what was recalled."""
    metadata: dict[str, Any] = {
        "model_name": model,
        "model_provider": "lag",
        "finish_reason": reply.finish_reason,
        "lag": reply.report(),
    }
    if (logprobs := reply.logprobs) is not None:
        metadata["logprobs"] = {"content": logprobs}
    return metadata


def usage_metadata(reply: Reply) -> UsageMetadata:
    """Return the tokens read and written; injected and reused ones count as read from a cache."""
    usage = reply.usage
    details = usage.get("prompt_tokens_details") or {}
    return UsageMetadata(
        input_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        total_tokens=usage["total_tokens"],
        input_token_details=InputTokenDetails(
            cache_read=details.get("cached_tokens", 0),
            cache_creation=details.get("cache_creation_tokens", 0),
        ),
    )


def json_schema_of(response_format: Any) -> dict[str, Any] | None:
    """Return the JSON schema in a ``response_format``; None if it asks for plain text.

    Raises:
        PromptError: It has the type ``json_schema``, but no schema.
    """
    if response_format is None or response_format == {"type": "text"}:
        return None
    if isinstance(response_format, Mapping):
        schema = schema_in(response_format)
        if schema is None or "title" not in response_format:
            return schema
    return dict(convert_to_json_schema(response_format))

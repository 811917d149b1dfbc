"""A request as servers with OpenAI's API take it, `kvlog serve` among them."""

from __future__ import annotations

from typing import Any

from lag_integrations.chat.openai_form import call_dict
from lag_integrations.chat.output_format import ANY_JSON
from lag_integrations.chat.request import ChatRequest
from lag_integrations.chat.settings import SAMPLING
from lag_integrations.engine.tools.choice import ToolChoice, word_of
from lag_integrations.errors import SettingsError
from lag_integrations.memory.safe_recall import Refused
from lag_integrations.traces.message import Message


def openai_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as any server with OpenAI's API takes it.

    Args:
        model: Name of the model there.
        request: The request.

    Raises:
        SettingsError: It has a setting that no such server knows.
        ToolChoiceError: The choice of tools is malformed.
    """
    if unknown := sorted(request.sampling.keys() - set(SAMPLING)):
        raise SettingsError(f"{', '.join(unknown)}: no settings of a call; leave them out.")
    output = request.output
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_dict(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "tools": list(output.tools) or None,
        "tool_choice": _choice(output.tool_choice),
        "parallel_tool_calls": None if output.parallel_tool_calls else False,
        **request.sampling,
    }
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if output.schema == ANY_JSON:
        body["response_format"] = {"type": "json_object"}
    elif output.schema is not None:
        schema = {"name": "answer", "schema": output.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if value is not None}


def _choice(choice: ToolChoice) -> str | dict[str, Any] | None:
    word = word_of(choice)
    if word == "auto":
        return None
    if word in ("any", "required"):
        return "required"
    return word if word == "none" else {"type": "function", "function": {"name": word}}


def gateway_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as `kvlog serve` takes it.

    Raises:
        SettingsError: It has a setting that only a model here knows.
        ToolChoiceError: The choice of tools is malformed.
    """
    if request.share_system:
        raise SettingsError("share_system= is for a model here; its server decides it.")
    retrieval = request.retrieval
    where, k = retrieval.where, retrieval.k
    if isinstance(where, Refused):
        where.nothing()  # says why
        where, k = None, 0
    lag = {
        "k": k,
        "min_score": retrieval.min_score,
        "query": retrieval.query,
        "where": where,
        "log_ids": None if retrieval.log_ids is None else list(retrieval.log_ids),
        "as_text": retrieval.as_text,
        "best_last": retrieval.best_last,
        "missing_segments": retrieval.missing,
        "question": request.question,
        "placement": request.placement,
        "attention_temperature": request.attention_temperature,
        "thread_id": retrieval.owner.thread,
        "capture": request.capture,
        "said": None if retrieval.said is None else list(retrieval.said),
        "sources": [source.to_json() for source in retrieval.shown] or None,
    }
    told = {
        "timeout": request.timeout,
        "cache_salt": request.cache_salt or None,
        "user": retrieval.owner.user,
        "metadata": dict(request.metadata) or None,
        "lag": {name: value for name, value in lag.items() if value is not None},
    }
    body = openai_body(model, request)
    body["messages"] = [message_dict(message, status=True) for message in request.messages]
    return body | {name: value for name, value in told.items() if value is not None}


def message_dict(message: Message, *, status: bool = False) -> dict[str, Any]:
    """Return a message in OpenAI's form.

    Args:
        message: The message.
        status: Whether to say that a tool failed, which only `kvlog serve` understands.
    """
    left_out = {"tool_calls", "id", *(() if status else ("status",))}
    found = message.model_dump(exclude=left_out, exclude_none=True)
    if message.tool_calls:
        found["tool_calls"] = [
            call_dict(call.name, call.args, call.id or "") for call in message.tool_calls
        ]
    return found

"""A request as servers with OpenAI's API take it, `kvlog serve` among them."""

from __future__ import annotations

from typing import Any

from lag_integrations.chat.openai_form import call_dict
from lag_integrations.chat.request import ChatRequest
from lag_integrations.memory.safe_recall import Refused
from lag_integrations.traces.message import Message


def openai_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as any server with OpenAI's API takes it.

    Args:
        model: Name of the model there.
        request: The request.
    """
    output = request.output
    body: dict[str, Any] = {
        "model": model,
        "messages": [message_dict(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "tools": list(output.tools) or None,
        "tool_choice": "required" if output.tool_choice is True else output.tool_choice or None,
        "parallel_tool_calls": None if output.parallel_tool_calls else False,
        **request.sampling,
    }
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if output.schema is not None:
        schema = {"name": "answer", "schema": output.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if value is not None}


def gateway_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as `kvlog serve` takes it."""
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
    }
    told = {
        "timeout": request.timeout,
        "cache_salt": request.cache_salt or None,
        "user": retrieval.owner.user,
        "lag": {name: value for name, value in lag.items() if value is not None},
    }
    body = openai_body(model, request)
    return body | {name: value for name, value in told.items() if value is not None}


def message_dict(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's form."""
    found = message.model_dump(exclude={"tool_calls", "id"}, exclude_none=True)
    if message.tool_calls:
        found["tool_calls"] = [
            call_dict(call.name, call.args, call.id or "") for call in message.tool_calls
        ]
    return found

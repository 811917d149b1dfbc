"""A chat model that says what a test tells it to, and remembers what it was given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

from lag_integrations import KVLogMemory
from lag_integrations.chat.current import current_memory
from lag_integrations.langchain import LAGChatModel


class Scripted(BaseChatModel):
    """Gives its answers in turn, the last one for ever."""

    answers: list[Any] = Field(default_factory=lambda: ["done"])
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    kwargs: list[dict[str, Any]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        message = _answer(self, messages, kwargs)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        yield _chunk(_answer(self, messages, kwargs))


class ScriptedLAG(LAGChatModel):
    """One of ours, with nothing loaded."""

    answers: list[Any] = Field(default_factory=lambda: ["done"])
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    kwargs: list[dict[str, Any]] = Field(default_factory=list)
    memories: list[Any] = Field(default_factory=list)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(model="none", **kwargs)

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    _generate = Scripted._generate
    _stream = Scripted._stream
    _agenerate = BaseChatModel._agenerate
    _astream = BaseChatModel._astream


def _answer(
    model: Scripted | ScriptedLAG, messages: list[BaseMessage], kwargs: dict[str, Any]
) -> AIMessage:
    model.seen.append(messages)
    model.kwargs.append(kwargs)
    if isinstance(model, ScriptedLAG):
        model.memories.append(current_memory.get())
    answer = model.answers[min(len(model.seen), len(model.answers)) - 1]
    if isinstance(answer, Exception):
        raise answer
    return AIMessage(answer) if isinstance(answer, str) else answer.model_copy(deep=True)


def _chunk(message: AIMessage) -> ChatGenerationChunk:
    calls = [
        {**call, "args": json.dumps(call["args"]), "index": index, "type": "tool_call_chunk"}
        for index, call in enumerate(message.tool_calls)
    ]
    return ChatGenerationChunk(
        message=AIMessageChunk(message.content, tool_call_chunks=calls, chunk_position="last")
    )


def call(name: str, text: str = "", **args: Any) -> AIMessage:
    """An answer that calls a tool."""
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": f"call-{name}"}])


def added(memory: KVLogMemory, *traces: Any) -> list[str]:
    """Ids of traces that can be recalled now."""
    ids = memory.add_many(traces)
    memory.embed_pending()
    return ids

"""A chat model that answers what a test tells it to, and what the tests of capture share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from pydantic import ConfigDict, Field

from lag_integrations import KVLogMemory, Trace
from lag_integrations.chat.current import current_memory
from lag_integrations.langchain import LAGChatModel

RAIN = ["user: Weather?", "assistant: look(c1)", "tool: Rain in Oslo", "assistant: It rains."]
"""The steps of an agent that looks at the weather in Oslo."""


@tool
def look(city: str) -> str:
    """Look at the weather."""
    return f"Rain in {city}"


class FakeChatModel(BaseChatModel):
    """Returns its answers in turn, the last one for ever; raises those that are exceptions.

    Attributes:
        answers: Texts, messages and exceptions.
        seen: The messages of each call.
        kwargs: The settings of each call.
        memories: The current memory in each call.
    """

    answers: list[Any]
    seen: list[list[BaseMessage]] = Field(default_factory=list)
    kwargs: list[dict[str, Any]] = Field(default_factory=list)
    memories: list[KVLogMemory | None] = Field(default_factory=list)

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def __init__(self, *answers: Any, **kwargs: Any) -> None:
        super().__init__(**{"answers": list(answers) or ["done"], **kwargs})

    @property
    def _llm_type(self) -> str:
        return "fake"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self.bind(tools=tools, **kwargs)

    def _next(self, messages: list[BaseMessage], kwargs: dict[str, Any]) -> AIMessage:
        self.seen.append(messages)
        self.kwargs.append(kwargs)
        self.memories.append(current_memory.get())
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return AIMessage(answer) if isinstance(answer, str) else answer.model_copy(deep=True)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages, kwargs))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._next(messages, kwargs)
        for word in re.findall(r"\s*\S+", str(message.content)):
            yield ChatGenerationChunk(message=AIMessageChunk(word))
        calls = [
            {**one, "args": json.dumps(one["args"]), "index": index, "type": "tool_call_chunk"}
            for index, one in enumerate(message.tool_calls)
        ]
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                "",
                tool_call_chunks=calls,
                response_metadata=message.response_metadata,
                chunk_position="last",
            )
        )


class FakeLAGChatModel(FakeChatModel, LAGChatModel):
    """A `LAGChatModel` that loads nothing and answers as `FakeChatModel` does."""

    def __init__(self, *answers: Any, **kwargs: Any) -> None:
        LAGChatModel.__init__(self, "none", **{"answers": list(answers) or ["done"], **kwargs})

    _agenerate = BaseChatModel._agenerate
    _astream = BaseChatModel._astream


def call(name: str, id: str = "c1", text: str = "", **args: Any) -> AIMessage:
    """An answer that calls a tool."""
    return AIMessage(text, tool_calls=[{"name": name, "args": args, "id": id}])


def said(trace: Trace) -> list[str]:
    """The steps of a trace in short: ``role: text``, a call as ``name(id)``."""
    return [
        f"{step.role}: {step.text.strip()}"
        + ", ".join(f"{call.name}({call.id})" for call in step.tool_calls)
        for step in trace.messages
    ]

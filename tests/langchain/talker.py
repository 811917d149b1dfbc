"""A chat model that says what it is told to, word by word where it streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from pydantic import Field

from lag_integrations import KVLogMemory, Trace

RAIN = ["user: Weather?", "assistant: look(c1)", "tool: Rain in Oslo", "assistant: It rains."]
"""What is said when a Talker looks at the weather of Oslo."""


@tool
def look(city: str) -> str:
    """Look at the weather."""
    return f"Rain in {city}"


class Talker(BaseChatModel):
    """Gives its answers in turn, the last one for ever; an exception is raised."""

    answers: list[Any]
    seen: list[list[BaseMessage]] = Field(default_factory=list)

    def __init__(self, *answers: Any, **kwargs: Any) -> None:
        super().__init__(answers=list(answers), **kwargs)

    @property
    def _llm_type(self) -> str:
        return "talker"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _next(self, messages: list[BaseMessage]) -> AIMessage:
        self.seen.append(messages)
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return AIMessage(answer) if isinstance(answer, str) else answer.model_copy(deep=True)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        message = self._next(messages)
        for word in str(message.content).split():
            yield ChatGenerationChunk(message=AIMessageChunk(f"{word} "))
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


def calls(name: str, id: str = "c1", **args: Any) -> AIMessage:
    """An answer that calls a tool."""
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": id}])


def captured(memory: KVLogMemory) -> list[Trace]:
    """All traces in the ledger, the oldest first."""
    return [info.trace for info in reversed(memory.store.ledger.info())]


def said(trace: Trace) -> list[str]:
    """The steps of a trace in short: ``role: text``, a call as ``name(id)``."""
    return [
        f"{step.role}: {step.text.strip()}"
        + ", ".join(f"{call.name}({call.id})" for call in step.tool_calls)
        for step in trace.messages
    ]

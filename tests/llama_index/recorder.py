"""An LLM that says what a test tells it to; what it was given is looked at."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM

from lag_integrations import KVLogMemory, Trace
from lag_integrations.llama_index.message_tag import is_carrier, tag_of
from tests.conftest import qa

VAULT = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")
FERRY = qa("What does the Ostrava ferry carry?", "The Ostrava ferry carries bees.")
Seen = list[list[ChatMessage]]


def said(text: str) -> ChatMessage:
    return ChatMessage(role="assistant", content=text)


def called(name: str, **args: Any) -> ChatMessage:
    call = ToolCallBlock(tool_name=name, tool_kwargs=args, tool_call_id=f"call-{name}")
    return ChatMessage(role="assistant", blocks=[TextBlock(text=""), call])


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def recorder(*answers: str | ChatMessage) -> tuple[MockFunctionCallingLLM, Seen]:
    """An LLM that gives its answers in turn, the last one for ever, and what it was given."""
    seen: Seen = []

    def next_answer(messages: Any, **kwargs: Any) -> ChatMessage:
        seen.append(list(messages))
        answer = answers[min(len(seen), len(answers)) - 1]
        return said(answer) if isinstance(answer, str) else answer.model_copy(deep=True)

    return MockFunctionCallingLLM(response_generator=next_answer, is_chat_model=True), seen


def added(memory: KVLogMemory, *traces: Trace) -> list[str]:
    """Logs that can be recalled at once."""
    ids = memory.add_many(traces)
    memory.embed_pending()
    return ids


def named(messages: list[ChatMessage]) -> list[str] | None:
    """The logs that a prompt names; None if it names none, not even no logs."""
    tag = tag_of(messages)
    return None if tag is None else list(tag["log_ids"])


def texts(messages: list[ChatMessage]) -> str:
    """All that a model reads of a prompt."""
    return "\n".join(m.content or "" for m in messages if not is_carrier(m))

"""Log ids in a message, by which a memory of messages tells the LLM which logs to use.

LlamaIndex hands an LLM nothing but messages. What a message has in its ``additional_kwargs`` goes
through agents and chat engines untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from lag_integrations.memory.memory import LogMemory

TAG = "lag"


class _Tag(dict[str, Any]):
    def __repr__(self) -> str:
        return "…"  # condense prompts and token counts take a message's kwargs as they are printed


def tagged(message: ChatMessage, memory: LogMemory, log_ids: Sequence[str]) -> ChatMessage:
    """Return a copy of a message that names logs."""
    tag = _Tag(memory=memory.id, log_ids=list(log_ids))
    kwargs = {**message.additional_kwargs, TAG: tag}
    return message.model_copy(update={"additional_kwargs": kwargs})


def carrier(memory: LogMemory, log_ids: Sequence[str]) -> ChatMessage:
    """Return an empty message that names logs; `LAGLLM` takes it out of the conversation."""
    return tagged(ChatMessage(role=MessageRole.USER, blocks=[]), memory, log_ids)


def is_carrier(message: ChatMessage) -> bool:
    """Return whether a message is empty and names logs."""
    return TAG in message.additional_kwargs and not message.blocks


def tag_of(messages: Sequence[ChatMessage]) -> Mapping[str, Any] | None:
    """Return the newest tag of a conversation: ``memory`` (its id) and ``log_ids``."""
    for message in reversed(messages):
        tag = message.additional_kwargs.get(TAG)
        if isinstance(tag, Mapping) and "memory" in tag:
            return tag
    return None

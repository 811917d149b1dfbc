"""Where the model of a gateway runs: in its process, or at another server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lag_integrations.chat.reply import Reply
from lag_integrations.chat.request import ChatRequest
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import attach_safely
from lag_integrations.traces.message import Message

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine


class Backend(Protocol):
    """Who answers."""

    @property
    def window(self) -> int | None:
        """Usable context in tokens, if it is known."""
        ...

    def respond(self, memory: LogMemory, request: ChatRequest) -> Reply:
        """Recall for a request, and return the reply, of which nothing is generated yet.

        Raises:
            LAGError: The request cannot be answered.
        """
        ...

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            LAGError: Nobody here knows.
        """
        ...

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        """Return the number of tokens of a rendered conversation.

        Raises:
            LAGError: Nobody here knows.
        """
        ...


class EmbeddedModel:
    """A model in this process, which is given logs as KV.

    Args:
        engine: The model.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def window(self) -> int:
        """Usable context, in tokens."""
        return self._engine.window

    def respond(self, memory: LogMemory, request: ChatRequest) -> Reply:
        """Recall for a request, and return the reply."""
        from lag_integrations.chat.response import respond  # torch, which not all backends need

        attach_safely(memory, self._engine)
        return respond(self._engine, memory, request, memory)

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self._engine.tokens_of(text)

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        """Return the number of tokens of a rendered conversation."""
        return self._engine.count_tokens(messages, tools)

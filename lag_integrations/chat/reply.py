"""What a reply to a call is, wherever the model runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from lag_integrations.chat.parts import Part


class Reply(Protocol):
    """The reply to one call, part by part, for ``for`` or ``async for``.

    What is known at its end is complete once all parts were read.
    """

    def __iter__(self) -> Iterator[Part]: ...

    def __next__(self) -> Part: ...

    def __aiter__(self) -> AsyncIterator[Part]: ...

    async def __anext__(self) -> Part: ...

    def close(self) -> None:
        """Stop the model."""
        ...

    async def aclose(self) -> None:
        """Stop the model, whose parts were awaited."""
        ...

    @property
    def finish_reason(self) -> str:
        """Why it ended: ``stop`` or ``length``; ``cancelled`` until it ended by itself."""
        ...

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and written, in OpenAI's form."""
        ...

    @property
    def logprobs(self) -> list[dict[str, Any]] | None:
        """Log probabilities of each token, in OpenAI's form; None if nobody asked for them."""
        ...

    def report(self) -> dict[str, Any]:
        """Return what was used: logs and scores (best first), their form, tokens, seconds."""
        ...

"""How a run ended, as far as that can be read from what ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

STOP_KEYS = ("finish_reason", "stop_reason", "done_reason")
"""Where providers say why a model stopped."""

_TOO_LONG = {"length", "max_tokens", "max_output_tokens", "model_length"}  # what they call a limit


def is_cancellation(error: BaseException) -> bool:
    """Whether a run ended because its stream was closed, or its task cancelled, or by Ctrl-C."""
    return isinstance(error, GeneratorExit | asyncio.CancelledError | KeyboardInterrupt)


def is_length_stop(reasons: Iterable[Any]) -> bool:
    """Whether one of the reasons to stop is that an answer reached the limit of its length."""
    return any(str(getattr(one, "value", one)).lower() in _TOO_LONG for one in reasons)

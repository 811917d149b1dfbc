"""How a run ended, as far as its error or its last message tells."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

STOP_KEYS = ("finish_reason", "stop_reason", "done_reason")
"""Metadata keys under which providers say why a model stopped."""

_LENGTH_REASONS = {"length", "max_tokens", "max_output_tokens", "model_length"}


def is_cancellation(error: BaseException) -> bool:
    """Return whether the run was stopped: its stream closed, its task cancelled, or Ctrl-C."""
    return isinstance(error, GeneratorExit | asyncio.CancelledError | KeyboardInterrupt)


def is_length_stop(reasons: Iterable[Any]) -> bool:
    """Return whether one of the stop reasons is the limit of the answer's length."""
    return any(str(getattr(one, "value", one)).lower() in _LENGTH_REASONS for one in reasons)

"""Which memory a model call belongs to, where whoever recalls is not the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory

current_memory: ContextVar[KVLogMemory | None] = ContextVar("lag_memory", default=None)
"""The memory whose log ids a call's ``kv_log_ids`` are."""


@contextmanager
def use_memory(memory: KVLogMemory) -> Iterator[None]:
    """Make a memory the current one of this thread or task, and of what it starts."""
    token = current_memory.set(memory)
    try:
        yield
    finally:
        current_memory.reset(token)

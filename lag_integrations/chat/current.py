"""Which logs a model call is given, where whoever recalls is not the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory
    from lag_integrations.memory.safe_recall import Recalled

current_memory: ContextVar[LogMemory | None] = ContextVar("lag_memory", default=None)
"""The memory whose log ids a call's ``kv_log_ids`` are."""


@contextmanager
def use_memory(memory: LogMemory) -> Iterator[None]:
    """Make a memory the current one of this thread or task, and of what it starts."""
    token = current_memory.set(memory)
    try:
        yield
    finally:
        current_memory.reset(token)


@dataclass(frozen=True)
class InjectedLogs:
    """Logs that were recalled for all model calls of a task, whichever prompts these have.

    Attributes:
        memory: Whose logs they are.
        recalled: The logs.
        question: What they were recalled for; prompts may hold more than that.
        as_text: Whether they are read as text instead of KV.
        shown: The documents that the calls are shown, so far as they are known.
        reports: What each call says of itself (tokens, logs, times); calls add to it.
        within: What is said of the tasks within this one for which others recalled.
    """

    memory: LogMemory
    recalled: Recalled
    question: str
    as_text: bool = False
    shown: list[Source] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    within: list[dict[str, Any]] = field(default_factory=list)


current_logs: ContextVar[InjectedLogs | None] = ContextVar("lag_given", default=None)
"""What the model calls of this thread or task are given."""


@contextmanager
def inject_logs(given: InjectedLogs) -> Iterator[None]:
    """Give logs to the model calls of this thread or task, and of what it starts."""
    token = current_logs.set(given)
    try:
        yield
    finally:
        current_logs.reset(token)

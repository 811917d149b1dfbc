"""Captures whole LlamaIndex runs as traces, off the hot path and without ever raising."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lag_integrations.judging import Judge

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory


def open_run(
    memory: KVLogMemory,
    *,
    owner: object = None,
    judge: Judge | None = None,
    thread: str | None = None,
) -> str | None:
    """Capture the run that goes on; see the coming implementation."""
    return None


def note_recalled(texts: Mapping[str, str]) -> None:
    """These texts, with the ids of their logs, were recalled into the run that goes on."""


def is_choosing() -> bool:
    """Whether what goes on only chooses: a selector, a question generator, a retriever."""
    return False

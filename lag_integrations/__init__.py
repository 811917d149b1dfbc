"""A memory made of computation for agents (log-augmented generation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lag_integrations.trace import Message, ToolCall, Trace

if TYPE_CHECKING:
    from lag_integrations.engine import Engine
    from lag_integrations.memory import KVLogMemory
    from lag_integrations.screening import Quarantine, Refuse
    from lag_integrations.search import RecalledLog

__all__ = [
    "Engine",
    "KVLogMemory",
    "Message",
    "Quarantine",
    "RecalledLog",
    "Refuse",
    "ToolCall",
    "Trace",
]

_LAZY = {
    "Engine": "lag_integrations.engine",
    "KVLogMemory": "lag_integrations.memory",
    "Quarantine": "lag_integrations.screening",
    "RecalledLog": "lag_integrations.memory",
    "Refuse": "lag_integrations.screening",
}


def __getattr__(name: str) -> Any:
    # torch and Chroma take seconds to import: only those who use them pay.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)

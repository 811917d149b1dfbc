"""A memory made of computation for agents (log-augmented generation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.trace import Trace

if TYPE_CHECKING:
    from lag_integrations.calibration.calibrate import calibrate
    from lag_integrations.engine.engine import Engine
    from lag_integrations.kv_log_memory import KVLogMemory
    from lag_integrations.memory.results import RecalledLog
    from lag_integrations.traces.screening import Quarantine, Refuse

__all__ = [
    "Engine",
    "KVLogMemory",
    "Message",
    "Quarantine",
    "RecalledLog",
    "Refuse",
    "ToolCall",
    "Trace",
    "calibrate",
]

_LAZY = {
    "Engine": "lag_integrations.engine.engine",
    "KVLogMemory": "lag_integrations.kv_log_memory",
    "Quarantine": "lag_integrations.traces.screening",
    "RecalledLog": "lag_integrations.memory.results",
    "Refuse": "lag_integrations.traces.screening",
    "calibrate": "lag_integrations.calibration.calibrate",
}


def __getattr__(name: str) -> Any:
    # torch and Chroma take seconds to import: only those who use them pay.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)

"""A memory made of computation for agents (log-augmented generation).

What this module, `lag_integrations.langchain`, `lag_integrations.llama_index`,
`lag_integrations.errors` and `lag_integrations.packaged` export is public; all other module paths
are private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.calibration.calibrate import calibrate
    from lag_integrations.capture.judges import Judge
    from lag_integrations.engine.engine import Engine
    from lag_integrations.engine.token_selection import (
        LastAction,
        LastResponse,
        LastResponses,
        LastTurn,
        Selection,
        TaskAndLastTurns,
        WholeTrace,
        WithoutContext,
    )
    from lag_integrations.kv_log_memory import KVLogMemory
    from lag_integrations.memory.lessons.learner import LearnResult
    from lag_integrations.memory.results import Candidate, RecalledLog, SearchResult
    from lag_integrations.store.deletion_receipt import DeletionReceipt
    from lag_integrations.traces.provenance import UNTRUSTED_TOOLS
    from lag_integrations.traces.screening import Quarantine, Refuse

    __version__: str

__all__ = [
    "UNTRUSTED_TOOLS",
    "Candidate",
    "DeletionReceipt",
    "Engine",
    "Judge",
    "KVLogMemory",
    "LastAction",
    "LastResponse",
    "LastResponses",
    "LastTurn",
    "LearnResult",
    "Message",
    "Outcome",
    "Quarantine",
    "RecalledLog",
    "Refuse",
    "SearchResult",
    "Selection",
    "TaskAndLastTurns",
    "ToolCall",
    "Trace",
    "WholeTrace",
    "WithoutContext",
    "__version__",
    "calibrate",
]

_LAZY = {
    "calibration.calibrate": ("calibrate",),
    "capture.judges": ("Judge",),
    "engine.engine": ("Engine",),
    "engine.token_selection": (
        "LastAction",
        "LastResponse",
        "LastResponses",
        "LastTurn",
        "Selection",
        "TaskAndLastTurns",
        "WholeTrace",
        "WithoutContext",
    ),
    "kv_log_memory": ("KVLogMemory",),
    "memory.lessons.learner": ("LearnResult",),
    "memory.results": ("Candidate", "RecalledLog", "SearchResult"),
    "store.deletion_receipt": ("DeletionReceipt",),
    "traces.provenance": ("UNTRUSTED_TOOLS",),
    "traces.screening": ("Quarantine", "Refuse"),
}
"""By module, what is imported when it is asked for: torch and Chroma take seconds to import."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    for module, names in _LAZY.items():
        if name in names:
            from importlib import import_module

            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

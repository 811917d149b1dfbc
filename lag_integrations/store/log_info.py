"""Logs with their counters, as the ledger of this store or another holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lag_integrations.traces.provenance import MessageSource
from lag_integrations.traces.reserved_metadata import QUARANTINED
from lag_integrations.traces.trace import Trace

COUNTERS = ("captured_at", "times_seen", "times_recalled", "times_helped", "times_harmed")
"""The columns that an archive keeps of a log."""


@dataclass(frozen=True)
class LogInfo:
    """A log of the ledger, with its counters.

    Attributes:
        id: Log id.
        trace: The run.
        captured_at: When it was last captured, in Unix seconds.
        times_seen: How often the same run was captured.
        times_recalled: How often it was recalled.
        times_helped: How often it was said to have helped.
        times_harmed: How often it was said to have harmed.
        state: ``captured``, ``embedded`` (can be recalled) or ``indexed`` (also in Chroma).
        source: Its least trusted source (see `provenance`); None if it was captured before sources
            were recorded.
        segments: Number of stored segments.
        bytes: Bytes of the trace and its segments.
    """

    id: str
    trace: Trace
    captured_at: float
    times_seen: int
    times_recalled: int
    times_helped: int
    times_harmed: int
    state: str
    source: str | None
    segments: int
    bytes: int

    @property
    def quarantine(self) -> str | None:
        """The reason why it is in quarantine; None if it is not."""
        reason = self.trace.metadata.get(QUARANTINED)
        return None if reason is None else str(reason)


class ExportedLog(NamedTuple):
    """A log of another store.

    Attributes:
        trace: The run.
        counters: Its `COUNTERS` there.
        source: Its least trusted source, if known there.
    """

    trace: Trace
    counters: Mapping[str, float]
    source: MessageSource | None = None


def state_of(*, embedded: bool, waiting: bool) -> str:
    """Return a log's state.

    Args:
        embedded: Whether it has embeddings.
        waiting: Whether one of them is not in the index yet.
    """
    return "captured" if not embedded else "embedded" if waiting else "indexed"

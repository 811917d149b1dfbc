"""What many tests need."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations import Engine, KVLogMemory, RecalledLog
from lag_integrations.kv.segment import Segment


def stored_segments(
    memory: KVLogMemory, logs: Sequence[RecalledLog], engine: Engine | None = None
) -> list[Segment | None]:
    """The segments of logs as far as they are stored; None where one would have to be encoded."""
    return [one.segment for one in memory.load(logs, engine, missing="text")]

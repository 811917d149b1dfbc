"""What many tests need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from lag_integrations import Engine, KVLogMemory, RecalledLog, Trace
from lag_integrations.kv.segment import Segment


def stored_segments(
    memory: KVLogMemory, logs: Sequence[RecalledLog], engine: Engine | None = None
) -> list[Segment | None]:
    """The segments of logs as far as they are stored; None where one would have to be encoded."""
    return [one.segment for one in memory.load(logs, engine, missing="text")]


def added(memory: KVLogMemory, *traces: Trace) -> list[str]:
    """The ids of logs that can be recalled now."""
    ids = memory.add_many(traces)
    memory.embed_pending()
    return ids


def captured(memory: KVLogMemory) -> list[Trace]:
    """All that is logged, the oldest first."""
    return [info.trace for info in reversed(memory.store.ledger.info())]


def only(memory: KVLogMemory) -> Trace:
    """The one log that there is."""
    (trace,) = captured(memory)
    return trace


def loop_threads() -> list[threading.Thread]:
    """The threads on which models compute now."""
    return [thread for thread in threading.enumerate() if thread.name == "lag-inference"]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that no event tells of."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)

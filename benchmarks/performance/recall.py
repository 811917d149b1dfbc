"""Recall: embedding the question, and finding its logs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.growth import synthetic
from benchmarks.performance.paired import Figure, figures, interleaved
from lag_integrations import KVLogMemory
from lag_integrations.engine.token_selection import LastTurn

SUITE = "recall of three logs, ms"
NEW, AGAIN = "a new question", "a question asked before"


def recall(embedder: Any, rounds: int, logs: int) -> Iterator[Figure]:
    """Measure in a store of so many logs; `make growth` has large ones."""
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(folder, embedder=embedder, min_score=-1.0, selection=LastTurn()) as memory,
    ):
        memory.add_many([synthetic(number) for number in range(logs)])
        memory.flush()
        asked = 0

        def ask(question: str) -> float:
            begun = time.perf_counter()
            memory.recall(question)
            return 1e3 * (time.perf_counter() - begun)

        def new() -> float:
            nonlocal asked
            asked += 1
            return ask(f"Question {asked}: which one?")

        taken = interleaved(rounds, {NEW: new, AGAIN: lambda: ask("Which one is it?")})
        yield from figures(SUITE, {"logs": logs}, taken, (NEW,))

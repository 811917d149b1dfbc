"""How long callers wait under load: ``python -m benchmarks.latency``.

Threads that add, recall and delete at once, on one store. What is measured is the store, so that
no model is attached, and the embedder costs next to nothing unless the packaged one is asked for.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.growth import embed, synthetic
from lag_integrations import KVLogMemory
from lag_integrations.errors import LAGError

_OPERATIONS = {"add": 0.45, "recall": 0.45, "delete": 0.10}
"""What threads do, and how often."""


class Load:
    """Threads that use one memory at once, for a while.

    Args:
        memory: The memory.
        logs: Logs that it holds before anything is measured.

    Attributes:
        took: Seconds of each call, by what was called.
        errors: What went wrong.
    """

    def __init__(self, memory: KVLogMemory, logs: int) -> None:
        self._memory = memory
        self._numbers = count(logs)
        self._ids = memory.add_many(synthetic(number) for number in range(logs))
        self._guard = threading.Lock()
        memory.flush()
        self.took: dict[str, list[float]] = {name: [] for name in _OPERATIONS}
        self.errors: list[str] = []

    def run(self, threads: int, seconds: float) -> None:
        """Let so many threads do what they do, for so long."""
        until = time.perf_counter() + seconds
        running = [
            threading.Thread(target=self._work, args=(random.Random(seed), until))
            for seed in range(threads)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    def _work(self, chance: random.Random, until: float) -> None:
        while time.perf_counter() < until:
            (name,) = chance.choices(list(_OPERATIONS), list(_OPERATIONS.values()))
            number = next(self._numbers)
            trace = synthetic(number if name == "add" else chance.randrange(number))
            gone = self._any_id(chance) if name == "delete" else ""
            begun = time.perf_counter()
            try:
                if name == "add":
                    self._ids.append(self._memory.add(trace))
                elif name == "recall":
                    self._memory.recall(trace.task)
                else:
                    self._memory.delete(gone)
            except LAGError as error:
                self.errors.append(f"{name}: {error}")
            self.took[name].append(time.perf_counter() - begun)

    def _any_id(self, chance: random.Random) -> str:
        with self._guard:
            return self._ids.pop(chance.randrange(len(self._ids))) if self._ids else ""


def table_of(took: Mapping[str, Sequence[float]]) -> Table:
    """Return what calls took, in milliseconds."""
    table = Table("call", "calls", "p50", "p95", "p99", "max", title="Latency under load, ms")
    for name, seconds in took.items():
        if seconds:
            figures = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99, 100])
            table.add_row(name, f"{len(seconds):,}", *(f"{figure:,.1f}" for figure in figures))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print how long callers waited."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--logs", type=int, default=1_000, help="Logs to begin with.")
    parser.add_argument("--ledger", help="URL of an empty PostgreSQL database.")
    parser.add_argument("--index", help="URL of a Chroma server.")
    parser.add_argument("--packaged", action="store_true", help="Use the packaged embedder.")
    chosen = parser.parse_args(arguments)
    settings: dict[str, Any] = {} if chosen.packaged else {"embedder": embed}
    console = Console(width=130)
    with (
        tempfile.TemporaryDirectory() as name,
        KVLogMemory(
            Path(name), min_score=-1, ledger=chosen.ledger, index=chosen.index, **settings
        ) as memory,
    ):
        load = Load(memory, chosen.logs)
        load.run(chosen.threads, chosen.seconds)
        begun = time.perf_counter()
        memory.flush()
        flushed = time.perf_counter() - begun
        problems = memory.verify()
    console.print(table_of(load.took))
    console.print(
        f"{chosen.threads} threads, {chosen.seconds:g} s; flush after it: {flushed:.1f} s; "
        f"{len(load.errors)} errors, {len(problems)} problems."
    )
    for text in dict.fromkeys(load.errors):
        console.print(text)


if __name__ == "__main__":
    main()

"""How a store behaves as it grows: ``python -m benchmarks.growth``.

Synthetic logs with tiny segments. Small vectors that cost next to nothing, so that what is measured
is the store; or with `--packaged` those of the default embedder.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lag_integrations import KVLogMemory
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.store.embedder import Vectors
from lag_integrations.traces.trace import Trace

_DIMENSION = 32
_SHAPE = (2, 1, 4, 8)
_RECALLS = 200
_SEGMENT_EVERY = 10
_FINGERPRINT = "synthetic"

Settings = dict[str, Any]
"""Of a memory: its embedder."""


def embed(texts: Sequence[str]) -> Vectors:
    """Return a random vector a word, summed: fp32 ``[texts, 32]``."""
    vectors = np.zeros((len(texts), _DIMENSION), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in text.split():
            vectors[row] += _word(word)
    return vectors


@lru_cache(maxsize=10_000)
def _word(word: str) -> Vectors:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
    return np.random.RandomState(seed).standard_normal(_DIMENSION).astype(np.float32)


def synthetic(number: int) -> Trace:
    """Return a log that no other number has."""
    chance = random.Random(number)
    words = " ".join(f"w{chance.randrange(5_000)}" for _ in range(6))
    messages = [
        {"role": "user", "content": f"Question {number}: {words}?"},
        {"role": "assistant", "content": f"Answer {number}: {words} again."},
    ]
    metadata = {"team": number % 10, "rare": number % 5_000 == 0}
    return Trace.from_messages(messages, outcome="success", metadata=metadata)


def main() -> None:
    """Grow a store, and print a table of what it costs at each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--packaged", action="store_true", help="Use the packaged embedder.")
    arguments = parser.parse_args()
    settings: Settings = {} if arguments.packaged else {"embedder": embed}
    console = Console(width=150)
    columns = [
        "logs",
        "add p50 / p95",
        "add many",
        "until indexed",
        "bytes a log",
        "recall p50 / p95",
        "with a filter",
        "rare filter",
    ]
    table = Table(*columns, "load 3 segments", "open + first recall", title="Growth of a store")
    with tempfile.TemporaryDirectory() as name, Progress(console=console) as progress:
        folder = Path(name)
        before = 0
        for size in sorted(arguments.sizes):
            table.add_row(f"{size:,}", *_measure(folder, settings, before, size, progress))
            before = size
        evictions = _evict(folder, settings)
    console.print(table)
    console.print(evictions)


def _measure(
    folder: Path, settings: Settings, before: int, size: int, progress: Progress
) -> Iterator[str]:
    """Let the store grow to a size, and say what things take there (milliseconds)."""
    with KVLogMemory(folder, max_pending=10**9, **settings) as memory:
        memory.search("Is the embedder loaded?")
        number = size - before - 100
        bar = progress.add_task(f"Adding up to {size:,} logs", total=number)
        spent, begun = 0.0, time.perf_counter()
        for start in range(before, before + number, 1_000):
            traces = [synthetic(n) for n in range(start, min(start + 1_000, before + number))]
            spent += _seconds(partial(memory.add_many, traces))
            progress.advance(bar, len(traces))
        traces = [synthetic(n) for n in range(before + number, size)]
        adds = [_seconds(partial(memory.add, trace)) for trace in traces]
        bar = progress.add_task("Embedding and indexing")
        memory.flush(lambda done, total: progress.update(bar, completed=done, total=total))
        indexed = time.perf_counter() - begun  # the worker embeds while others are added
        # Every tenth log: writing a file takes longest, and nothing below depends on how many.
        chosen = sorted(set(memory.store.ledger.ids()))[::_SEGMENT_EVERY]
        for key in progress.track(chosen, description="Writing segments"):
            identity = SegmentKey(key, _FINGERPRINT, "last_response", "native")
            if memory.store.segments.is_missing(identity, ("success",)):
                memory.store.save(identity, _segment(key))
        assert memory.store.ledger.count() == size
        yield _both(adds)
        yield f"{number / spent:,.0f} a second"
        yield f"{indexed / (size - before) * 1e3:.1f}"
        yield f"{_nbytes(folder) / size:,.0f}"
        chance = random.Random(size)
        queries = [synthetic(chance.randrange(size)).task for _ in range(_RECALLS)]
        yield _both([_seconds(partial(memory.recall, query)) for query in queries])
        for where in ({"team": 3}, {"rare": True}):
            yield _both(
                [
                    _seconds(partial(memory.recall, query, where=where, min_score=-1))
                    for query in queries[:50]
                ]
            )
        sample = random.Random(size).sample(chosen, min(60, len(chosen)))
        threes = [sample[start : start + 3] for start in range(0, len(sample), 3)]
        yield _both([_seconds(partial(_load, memory, three)) for three in threes])
    begun = time.perf_counter()
    with KVLogMemory(folder, **settings) as memory:
        opened = time.perf_counter() - begun
        first = _seconds(lambda: memory.recall(queries[0]))
        yield f"{opened * 1e3:.0f} + {first * 1e3:.0f}"


def _load(memory: KVLogMemory, ids: Sequence[str]) -> None:
    """Load segments from their files, which the system still has in its own memory."""
    kind = SegmentKey("", _FINGERPRINT, "last_response", "native")
    memory.store.segment_cache.clear()
    for log_id, file in memory.store.segments.files(kind, ids).items():
        key = SegmentKey(log_id, _FINGERPRINT, "last_response", "native")
        assert file is not None
        assert memory.store.load(key, file) is not None


def _nbytes(folder: Path) -> int:
    """Return the bytes of the ledger and of the index."""
    files = [folder / "ledger.sqlite", *(folder / "index").rglob("*")]
    return sum(file.stat().st_size for file in files if file.is_file())


def _evict(folder: Path, settings: Settings) -> str:
    with KVLogMemory(folder, **settings) as memory:
        traces, segments = memory.store.evictor.nbytes()
    budget = traces + segments // 2
    with KVLogMemory(folder, max_bytes=budget, **settings) as memory:
        seconds = _seconds(memory.flush)
        kept = sum(memory.store.evictor.nbytes())
        on_disk = sum(
            (folder / "segments" / name).stat().st_size
            for name in memory.store.segment_files.names("")
        )
    return (
        f"Byte budget of {budget:,}: {kept / budget:.2%} of it used after {seconds:.0f} s of "
        f"eviction, {on_disk:,} bytes of segments on disk."
    )


def _segment(key: str) -> Segment:
    torch.manual_seed(int(key[:8], 16))
    slots = (torch.randn(_SHAPE), torch.randn(_SHAPE))
    return Segment(torch.arange(_SHAPE[2]), (slots,), _FINGERPRINT)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _both(seconds: Sequence[float]) -> str:
    p50, p95 = np.percentile(np.asarray(seconds) * 1e3, [50, 95])
    return f"{p50:.1f} / {p95:.1f}"


if __name__ == "__main__":
    main()

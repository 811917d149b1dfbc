"""Memory: the peak while segments are injected, and what many requests leave behind."""

from __future__ import annotations

import ctypes
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.performance.paired import Figure, figures
from benchmarks.performance.random_segments import random_segment
from benchmarks.performance.tasks import Task
from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.traces.message import Message

PEAK, GROWTH = "peak above the model, MB", "memory after so many requests, MB"
OWN, WARM, COLD = "the segments' own bytes", "segments in memory before", "segments read from disk"
_STATUS = Path("/proc/self/status")
_SAMPLE = 0.0005
_BUDGET = 64 * 2**20
"""Of caches that fill up and stay full, so that they are soon full."""
_LOGS = 30


def memory_use(engine: Engine, embedder: Any, rounds: int, requests: int) -> Iterator[Figure]:
    """Measure on Linux; nothing elsewhere."""
    if _STATUS.exists():
        yield from _peaks(engine, rounds)
        yield from _growth(engine, embedder, requests)


def _peaks(engine: Engine, rounds: int) -> Iterator[Figure]:
    key = SegmentKey("log", engine.fingerprint.id, "last_turn", "native")
    taken: dict[str, list[float]] = {OWN: [], WARM: [], COLD: []}
    with tempfile.TemporaryDirectory() as folder:
        blobs = SegmentFiles(folder)
        for number in range(rounds + 1):
            known = {}
            segments = [random_segment(engine, 1024, seed) for seed in range(3)]
            for seed, segment in enumerate(segments):
                data = dump_segment(segment, key)
                blobs.put(f"{number}-{seed}", data)
                known[f"{number}-{seed}"] = len(data), sha256_hex(data)
            own = sum(segment.nbytes for segment in segments) / 1e6
            warm = _peak(engine, number, segments.copy)
            del segments
            cold = _peak(
                engine,
                number,
                partial(_read, blobs, known, key),
            )
            if number:
                for way, value in ((OWN, own), (WARM, warm), (COLD, cold)):
                    taken[way].append(value)
    yield from figures(PEAK, {"log tokens": 3072}, taken, (OWN,))


def _read(
    blobs: SegmentFiles, known: Mapping[str, tuple[int, str]], key: SegmentKey
) -> list[Segment]:
    return [
        load_segment(blobs.get(name, nbytes), key, sha256)
        for name, (nbytes, sha256) in known.items()
    ]


def _peak(engine: Engine, number: int, given: Callable[[], Sequence[Segment]]) -> float:
    """Return the peak of memory above what there was before, in megabytes."""
    question = [Message(role="user", content=f"{number}: what did they find?")]
    gc.collect()
    _trim()
    before = most = _used()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, _used())
            time.sleep(_SAMPLE)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        engine.generate(question, given(), max_new_tokens=8, do_sample=False)
    finally:
        done.set()
        watcher.join()
    return most - before


def _growth(engine: Engine, embedder: Any, requests: int) -> Iterator[Figure]:
    small = Engine(engine.model, engine.tokenizer, prefix_cache_bytes=_BUDGET)
    task = Task.make(engine, 0, logs=_LOGS, tokens=60 * _LOGS)
    taken: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(
            folder, embedder=embedder, min_score=-1.0, selection=LastTurn(), hot_bytes=_BUDGET
        ) as memory,
    ):
        memory.attach(small)
        task.store(memory)
        for number in range(1, requests + 1):
            question = Message(
                role="user", content=f"{number}: what did they find in harbour {number % _LOGS}?"
            )
            segments = memory.segments(memory.recall(question.text))
            small.generate([question], segments, max_new_tokens=2, do_sample=False)
            if number in (requests // 10, requests // 2, requests):
                gc.collect()
                _trim()
                taken[f"after {number}"] = [_used()]
    yield from figures(GROWTH, {"requests": requests}, taken, (f"after {requests // 10}",))


def _trim() -> None:
    """Let the allocator give back what is free: how much it keeps differs from time to time."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _used() -> float:
    """Return megabytes of memory that is this process's alone."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    raise OSError(f"{_STATUS} does not say how much memory is used")

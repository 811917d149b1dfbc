"""The first token behind a log: as text, and as KV from each kind of memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks.gpu.logs import StoredLog
from benchmarks.gpu.models import text_of
from benchmarks.gpu.time_limit import TimeLimit
from benchmarks.performance.paired import Figure, Setting, figures, interleaved
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.as_text import read_as_text
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.inject import inject
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message

SUITE, LOADING = "first token, ms", "from disk to a cache, by part, ms"
BARE, TEXT = "bare prompt", "the log as text"
DEVICE, PINNED, MEMORY = "KV, on the GPU", "KV, in pinned memory", "KV, in plain memory"
DISK, PAGE_CACHE = "KV, from disk", "KV, from the page cache"
AGAIN = "KV, of the call before"
_QUESTION, _ROOM = 32, 128
"""Tokens of a question, and of a window that are left for all but the log."""


def first_token(
    engine: Engine, rounds: int, tokens: Sequence[int], limit: TimeLimit
) -> Iterator[Figure]:
    """Measure at some numbers of log tokens, the fewest first."""
    took = 0.0
    for number in sorted(tokens):
        what = f"first token behind {number:,} tokens"
        if number + _ROOM > engine.window:
            limit.leave_out(what, f"beyond the window of {engine.window:,}")
            continue
        if not limit.fits(what, 2 * took):
            continue
        begun = time.monotonic()
        setting: Setting = {"log tokens": number}
        with tempfile.TemporaryDirectory() as folder:
            log = StoredLog.make(engine, number, Path(folder))
            ways = _ways(engine, log)
            taken = interleaved(rounds, ways, lambda: limit.over)
            yield from figures(SUITE, setting, taken, (TEXT, BARE))
            yield from _loading(engine, log, rounds, setting, limit)
        took = time.monotonic() - begun


def _ways(engine: Engine, log: StoredLog) -> dict[str, Callable[[], float]]:
    numbers = count()

    def asked(segments: Sequence[Segment], *, text: bool = False, salt: str | None = None) -> float:
        """Ask what was never asked; return the milliseconds until the first token."""
        number = next(numbers)
        _settle(engine)
        begun = time.perf_counter()
        request = engine.request(
            [Message(role="user", content=text_of(engine, _QUESTION, number))],
            segments,
            max_new_tokens=1,
            do_sample=False,
            log_lookup=False,
            # Without what others have read.
            cache_salt=f"{number}" if salt is None else salt,
        )
        stream = engine.start(read_as_text(request) if text else request, begun)
        for _ in stream:
            pass
        return 1e3 * stream.generation.time_to_first_token

    def loaded(*, cold: bool) -> float:
        if cold:
            log.evict()
        begun = time.perf_counter()
        segment = log.load()
        return 1e3 * (time.perf_counter() - begun) + asked([segment])

    held, plain = log.load(), log.unstaged()
    ways: dict[str, Callable[[], float]] = {
        BARE: lambda: asked(()),
        TEXT: lambda: asked([plain], text=True),
        MEMORY: lambda: asked([plain]),
        DISK: partial(loaded, cold=True),
        PAGE_CACHE: partial(loaded, cold=False),
        AGAIN: lambda: asked([log.segment], salt="again"),
    }
    if engine.model.device.type == "cuda":
        ways[PINNED] = lambda: asked([held])
        ways[DEVICE] = lambda: asked([log.segment])
    return ways


def _loading(
    engine: Engine, log: StoredLog, rounds: int, setting: Setting, limit: TimeLimit
) -> Iterator[Figure]:
    """Measure what lies between a file and a cache, step by step."""
    device, held, plain = engine.model.device, log.load(), log.unstaged()

    def injected() -> object:
        cache = new_cache(room=len(log.segment) + _ROOM)
        inject(
            cache,
            engine.positions,
            [log.segment],
            start=0,
            fingerprint=engine.fingerprint.id,
            temperature=0.9,
        )
        return cache

    parts = {"reading the file": log.read, **log.parts(), "rotation into a cache": injected}
    if device.type == "cuda":
        parts["copy to the GPU, pinned"] = lambda: held.to(device)
        parts["copy to the GPU, not pinned"] = lambda: plain.to(device)
    taken = interleaved(
        rounds,
        {name: partial(_milliseconds, engine, part) for name, part in parts.items()},
        lambda: limit.over,
    )
    yield from figures(LOADING, setting, taken, ())
    if device.type == "cuda":
        _settle(engine)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        injected()
        peak = torch.cuda.max_memory_allocated(device) - before
        value = {"rotation into a cache": [peak / log.segment.nbytes]}
        yield from figures("peak of memory, in segments", setting, value, ())


def _milliseconds(engine: Engine, way: Callable[[], object]) -> float:
    _settle(engine)
    begun = time.perf_counter()
    kept = way()  # freeing it is not timed
    _settle(engine)
    taken = 1e3 * (time.perf_counter() - begun)
    del kept
    return taken


def _settle(engine: Engine) -> None:
    """Wait for what a GPU still computes."""
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize(engine.model.device)

"""From files to a cache: against reading the same bytes with safetensors alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.performance.paired import Figure, Setting, figures, interleaved
from benchmarks.performance.random_segments import random_segment
from lag_integrations.engine.engine import Engine
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.inject import inject
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.segment_files import SegmentFiles

SUITE = "loading three segments, ms"
MAPPED, READ = "safetensors, mapped and summed", "safetensors, into memory"
LOADED, BUILT = "ours: read and checked", "ours: read, checked, rotated, in a cache"
ROTATED = "ours: rotated, in a cache"


def loading(engine: Engine, rounds: int, tokens: list[int], codecs: list[str]) -> Iterator[Figure]:
    """Measure with values by chance: what they are makes no difference here."""
    for number in tokens:
        yield from _measure(engine, rounds, number, "native")
    for codec in codecs:
        yield from _measure(engine, rounds, 1024, codec)


def _measure(engine: Engine, rounds: int, tokens: int, codec: str) -> Iterator[Figure]:
    segments = [random_segment(engine, tokens // 3, seed) for seed in range(3)]
    key = SegmentKey("log", engine.fingerprint.id, "last_turn", codec)
    with tempfile.TemporaryDirectory() as folder:
        blobs = SegmentFiles(folder)
        plain, known = [], []
        for number, segment in enumerate(segments):
            data = dump_segment(segment, key)
            blobs.put(f"{number}", data)
            known.append((len(data), sha256_hex(data)))
            plain.append(Path(folder) / f"{number}.plain")
            slots = [slot for pair in segment.slots for slot in pair]
            save_file({f"{place}": slot for place, slot in enumerate(slots)}, plain[-1])
        ways: dict[str, Callable[[], object]] = {
            MAPPED: lambda: [slot.sum() for file in plain for slot in load_file(file).values()],
            READ: lambda: [slot.clone() for file in plain for slot in load_file(file).values()],
            LOADED: lambda: _load(blobs, key, known),
            BUILT: lambda: _build(engine, _load(blobs, key, known)),
            ROTATED: lambda: _build(engine, segments),
        }
        taken = interleaved(
            rounds, {name: partial(_milliseconds, way) for name, way in ways.items()}
        )
    setting: Setting = {"log tokens": tokens // 3 * 3, "codec": codec}
    yield from figures(SUITE, setting, taken, (READ, MAPPED))


def _load(blobs: SegmentFiles, key: SegmentKey, known: list[tuple[int, str]]) -> list[Segment]:
    return [
        load_segment(blobs.get(f"{number}", nbytes), key, sha256)
        for number, (nbytes, sha256) in enumerate(known)
    ]


def _build(engine: Engine, segments: list[Segment]) -> object:
    cache = new_cache(room=sum(map(len, segments)) + 128)
    inject(
        cache,
        engine.positions,
        [segment.to(engine.model.device) for segment in segments],
        start=0,
        fingerprint=engine.fingerprint.id,
        temperature=0.9,
    )
    return cache


def _milliseconds(way: Callable[[], object]) -> float:
    begun = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)

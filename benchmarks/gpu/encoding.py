"""How many tokens of traces are encoded a second."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import torch

from benchmarks.gpu.logs import log_of
from benchmarks.gpu.time_limit import TimeLimit
from benchmarks.performance.paired import Figure, figures, interleaved
from lag_integrations.engine.engine import Engine
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.forward import read_rows
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import SegmentKey
from lag_integrations.kv.segment_file import dump_segment
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.store.segment_files import SegmentFiles

SUITE = "encoding, tokens a second"
PASS, ALONE, TOGETHER = "the forward passes alone", "one by one", "together"
STORED = "together, and written to disk"


def encoding(
    engine: Engine, rounds: int, traces: int, tokens: int, limit: TimeLimit
) -> Iterator[Figure]:
    """Measure with so many traces of about so many tokens."""
    if not limit.fits(f"encoding {traces} traces"):
        return
    logs = [log_of(engine, tokens, f"encoded {number}") for number in range(traces)]
    read = sum(map(len, logs))
    names, key = count(), SegmentKey("log", engine.fingerprint.id, "last_turn", "native")

    def passes() -> None:
        rows = torch.tensor([log.token_ids for log in logs])
        at_once = max(1, engine.encoder.batch_tokens // rows.shape[1])
        with torch.no_grad():
            for part in torch.split(rows, at_once):
                read_rows(engine.model, part, new_cache())

    def stored() -> None:
        for segment in engine.encode_all(logs):
            data = dump_segment(segment, key)
            files.put(f"{next(names)}-{sha256_hex(data)}", data)

    ways: dict[str, Callable[[], object]] = {
        PASS: lambda: in_own_thread(passes),
        ALONE: lambda: [engine.encode_all([log]) for log in logs],
        TOGETHER: lambda: engine.encode_all(logs),
        STORED: stored,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = SegmentFiles(folder)
        rates = {name: partial(_rate, engine, way, read) for name, way in ways.items()}
        taken = interleaved(rounds, rates, lambda: limit.over)
    yield from figures(SUITE, {"traces": traces, "tokens": read // traces}, taken, (PASS, ALONE))


def _rate(engine: Engine, way: Callable[[], object], tokens: int) -> float:
    begun = time.perf_counter()
    kept = way()
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize(engine.model.device)
    rate = tokens / (time.perf_counter() - begun)
    del kept
    return rate

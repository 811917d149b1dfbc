"""Answers that are written at once, and what a long prompt does to one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import torch

from benchmarks.concurrency import longest_gap
from benchmarks.gpu.logs import log_of
from benchmarks.gpu.models import text_of
from benchmarks.gpu.time_limit import TimeLimit
from benchmarks.performance.paired import Figure, Setting, figures, interleaved
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.sequence import Request
from lag_integrations.kv.segment import Segment
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.traces.message import Message

WRITING, LAST = "answers at once, tokens a second", "answers at once, first token of the last, ms"
ENGINE, BEHIND, GENERATE = "engine", "engine, each behind its log", "transformers' generate"
GAP, SAME = "longest gap of an answer, in its median gaps", "answers that are the same as alone"
_QUESTION, _LOG = 32, 512
"""Tokens of a question, and of a log."""
_COMPARED = 8
"""Answers of a batch that are written once more, alone."""


def batches(
    engine: Engine, rounds: int, sizes: Sequence[int], tokens: int, limit: TimeLimit
) -> Iterator[Figure]:
    """Measure some numbers of answers of so many tokens, the fewest first."""
    number = max(sizes)
    logs = [
        engine.encoder.stage(segment.to(torch.device("cpu")))
        for segment in engine.encode_all([log_of(engine, _LOG, seed) for seed in range(number)])
    ]
    took = 0.0
    for size in sorted(sizes):
        if not limit.fits(f"{size} answers at once", 2 * took):
            continue
        begun = time.monotonic()
        setting: Setting = {"answers": size, "tokens": tokens}
        first: dict[str, list[float]] = {ENGINE: [], BEHIND: []}
        ways: dict[str, Callable[[], float]] = {
            name: partial(_written, engine, segments, tokens, first[name])
            for name, segments in ((ENGINE, [()] * size), (BEHIND, [[log] for log in logs[:size]]))
        }
        ways[GENERATE] = partial(_generated, engine, size, tokens)
        taken = interleaved(rounds, ways, lambda: limit.over)
        yield from figures(WRITING, setting, taken, (GENERATE, ENGINE))
        counted = {name: values[1:] for name, values in first.items()}  # the first warms up
        yield from figures(LAST, setting, counted, (ENGINE,))
        took = time.monotonic() - begun
        if size > 1 and limit.fits(f"{size} answers at once beside each alone", took):
            yield from _same(engine, logs[:size], tokens, setting)


_numbers = count()


def _request(engine: Engine, segments: Sequence[Segment], tokens: int) -> Request:
    """Ask what was never asked, for an answer of so many tokens."""
    number = next(_numbers)
    return engine.request(
        [Message(role="user", content=text_of(engine, _QUESTION, number))],
        segments,
        max_new_tokens=tokens,
        do_sample=False,
        log_lookup=False,
        cache_salt=f"{number}",
    )


def _written(
    engine: Engine, segments: Sequence[Sequence[Segment]], tokens: int, first: list[float]
) -> float:
    begun = time.perf_counter()
    answers = engine.generate_batch([_request(engine, one, tokens) for one in segments])
    seconds = time.perf_counter() - begun
    first.append(1e3 * max(answer.time_to_first_token for answer in answers))
    return tokens * len(answers) / seconds


def _generated(engine: Engine, size: int, tokens: int) -> float:
    begun = time.perf_counter()
    prompts = [_request(engine, (), tokens).prompt_ids for _ in range(size)]
    ids = torch.tensor(prompts, device=engine.model.device)
    found = in_own_thread(
        lambda: engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    )
    found.cpu()  # waits for a GPU
    return tokens * size / (time.perf_counter() - begun)


def _same(
    engine: Engine, logs: Sequence[Segment], tokens: int, setting: Setting
) -> Iterator[Figure]:
    """Tell which share of answers is the same, token by token: rounding may part them."""
    asked = [_request(engine, [log], tokens) for log in logs]
    together = engine.generate_batch(asked)
    alone = [
        engine.generate_batch([replace(request, cache_salt=f"{request.cache_salt} alone")])[0]
        for request in asked[:_COMPARED]
    ]
    same = [one.token_ids == other.token_ids for one, other in zip(together, alone, strict=False)]
    yield from figures(SAME, setting, {BEHIND: [sum(same) / len(same)]}, ())


def gap(engine: Engine, rounds: int, tokens: int, limit: TimeLimit) -> Iterator[Figure]:
    """Measure how long an answer stands still while a prompt of so many tokens is read.

    Of a shorter window, half is read.
    """
    tokens = min(tokens, engine.window // 2)
    if not limit.fits(f"an answer beside a prompt of {tokens:,} tokens"):
        return

    def read() -> None:
        text = text_of(engine, tokens, next(_numbers))
        engine.generate(
            [Message(role="user", content=text)], max_new_tokens=1, cache_salt=f"{next(_numbers)}"
        )

    ways = {"beside a prompt": partial(longest_gap, engine, read)}
    taken = interleaved(rounds, ways, lambda: limit.over)
    yield from figures(GAP, {"tokens": tokens}, taken, ())

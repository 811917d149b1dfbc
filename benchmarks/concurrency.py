"""Several agents at once, on one model: ``python -m benchmarks.concurrency``.

Calls with logs of their own, all at once and one after the other; and the gaps between the tokens
of an answer while a long prompt is read, or traces are encoded. Log lookup is off, since it would
blur how passes are shared; what it saves is measured by ``benchmarks.log_lookup``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.performance.paired import Spread
from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.sequence import Request
from lag_integrations.evaluation.machine import stamp
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_CITIES = ("Lima", "Oslo", "Rome", "Cairo", "Quito", "Delhi", "Paris", "Tokyo")
_TOKENS = 64
_LONG = 2000
"""Tokens of the prompt and of the trace that come in between."""


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.concurrency", description=__doc__)
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--rounds", type=int, default=5, help="how often")
    arguments = parser.parse_args()
    engine = Engine.load(packaged.resolve(arguments.model))
    console = Console(width=150)
    console.print(_together(engine, arguments.rounds))
    console.print(_gaps(engine, arguments.rounds))
    console.print(Path(engine.name).name, "·", stamp())


def _together(engine: Engine, rounds: int) -> Table:
    """Compare calls at once with calls one after the other."""
    asked = _questions(engine)
    speed, first, same = [], [], 0
    for _ in track(range(rounds + 1), "together"):
        alone = [_clocked(engine, make) for make in asked]
        together, seconds = asyncio.run(_at_once(engine, asked))
        one_by_one = sum(seconds for _, _, seconds in alone)
        speed.append(one_by_one / seconds)
        usual = statistics.median(first for _, first, _ in alone)
        first.append(max(first for _, first in together) / usual)
        same += sum(one[0] == other[0] for one, other in zip(alone, together, strict=True))
    table = Table(
        "calls at once", "tokens a second / one by one", "last first token / alone", "same"
    )
    table.add_row(
        str(len(asked)),
        str(Spread.of(speed[1:])),  # the first round warms up
        str(Spread.of(first[1:])),
        f"{same} of {(rounds + 1) * len(asked)}",
    )
    return table


def _questions(engine: Engine) -> list[Callable[[], Request]]:
    """Return questions, each with a log of its own."""

    def of(city: str, code: int) -> Callable[[], Request]:
        said = [
            {"role": "user", "content": f"What is the code of the vault in {city}?"},
            {"role": "assistant", "content": f"The code is {code}. " + "Turn the wheel. " * 20},
        ]
        segment = engine.encode(Trace.from_messages(said, outcome="success"))
        question = f"Which code opens the vault in {city}? Write a story about it."
        return lambda: _request(engine, question, [segment], _TOKENS)

    return [of(city, 7741 + number) for number, city in enumerate(_CITIES)]


def _request(engine: Engine, question: str, segments: Sequence[Any], tokens: int) -> Request:
    # A salt of its own: nothing is known of the prompt but what is everybody's.
    return engine.request(
        [Message(role="user", content=question)],
        segments,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        temperature=0,
        log_lookup=False,
        cache_salt=str(time.perf_counter()),
        share_system=True,
    )


def _clocked(engine: Engine, make: Callable[[], Request]) -> tuple[list[int], float, float]:
    """Return the tokens, and the seconds until the first and the last of them."""
    begun = time.perf_counter()
    stream = engine.start(make())
    next(stream)
    first = time.perf_counter() - begun
    for _ in stream:
        pass
    return stream.generation.token_ids, first, time.perf_counter() - begun


async def _at_once(
    engine: Engine, asked: Sequence[Callable[[], Request]]
) -> tuple[list[tuple[list[int], float]], float]:
    begun = time.perf_counter()

    async def one(make: Callable[[], Request]) -> tuple[list[int], float]:
        stream = engine.start(make())
        await anext(stream)
        first = time.perf_counter() - begun
        async for _ in stream:
            pass
        return stream.generation.token_ids, first

    found = await asyncio.gather(*(one(make) for make in asked))
    return list(found), time.perf_counter() - begun


def _gaps(engine: Engine, rounds: int) -> Table:
    """Measure the gaps between the tokens of an answer while other work comes."""
    words = "lighthouse " * _LONG
    text = engine.tokenizer.decode(engine.tokens_of(words)[:_LONG])

    def read() -> None:
        for _ in engine.start(_request(engine, text, (), 1)):
            pass

    def encode() -> None:
        said = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": text}]
        engine.encode(Trace.from_messages(said, outcome="success"))

    table = Table("beside an answer", "its longest gap / its median gap")
    table.add_row("nothing", str(Spread.of([longest_gap(engine) for _ in range(rounds)])))
    for name, work in (
        (f"a prompt of {_LONG:,} tokens", read),
        (f"a trace of {_LONG:,} tokens", encode),
    ):
        found = [longest_gap(engine, work) for _ in track(range(rounds), name)]
        table.add_row(name, str(Spread.of(found)))
    return table


def longest_gap(engine: Engine, work: Callable[[], None] | None = None) -> float:
    """Return the longest gap of an answer in its median gaps, while something else is done.

    Args:
        engine: The model.
        work: What is done; nothing for two seconds by default.
    """
    stream = engine.start(_request(engine, "Tell a story.", (), 1500))
    for _ in range(20):
        next(stream)
    other = threading.Thread(target=work or (lambda: time.sleep(2)))
    times = [time.perf_counter()]
    for _ in range(20):  # what is usual
        next(stream)
        times.append(time.perf_counter())
    usual = statistics.median(end - begin for begin, end in itertools.pairwise(times))
    other.start()
    longest, last = 0.0, time.perf_counter()
    while other.is_alive() and next(stream, None) is not None:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    stream.close()
    other.join()
    return longest / usual


if __name__ == "__main__":
    main()

"""Importing many traces: embedded, encoded and stored, one by one and together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from typing import Any

from lag_integrations.engine import Engine
from lag_integrations.evaluation.bench.turns import Figure, figures, in_turns
from lag_integrations.memory import KVLogMemory
from lag_integrations.trace import Trace

SUITE = "import, traces a second"
ONE, TOGETHER = "one by one, nothing kept of the last", "add_many and flush"
_GUIDE = (
    "You answer for the harbour office. Say what you know, briefly, and with numbers where there "
    "are any. If something is not in the books, say that it is not, and where else one might ask. "
    "Boats are named by their flag and number; days are counted from the first of the year. "
)


def importing(engine: Engine, embedder: Any, rounds: int, traces: int) -> Iterator[Figure]:
    """Measure traces of an agent with a system message, and of one without."""
    for guide in ("", _GUIDE * 3):
        made = 0

        def some(number: int, guide: str = guide) -> list[Trace]:
            nonlocal made
            made += number
            return [_trace(guide, made + n) for n in range(number)]

        def one_by_one(some: Any = some) -> float:
            with tempfile.TemporaryDirectory() as folder, _memory(folder, embedder) as memory:
                plain = Engine(engine.model, engine.tokenizer, prefix_cache_bytes=0)
                memory.attach(plain)
                chosen = some(traces)
                begun = time.perf_counter()
                for trace in chosen:
                    memory.add(trace)
                    memory.flush()
                return traces / (time.perf_counter() - begun)

        def together(some: Any = some) -> float:
            with tempfile.TemporaryDirectory() as folder, _memory(folder, embedder) as memory:
                memory.attach(engine)
                chosen = some(traces)
                begun = time.perf_counter()
                memory.add_many(chosen)
                memory.flush()
                return traces / (time.perf_counter() - begun)

        taken = in_turns(rounds, {ONE: one_by_one, TOGETHER: together})
        tokens = len(engine.format.render(_trace(guide, 0).messages, generate=False).token_ids)
        head = engine.format.render(_trace(guide, 0).messages, generate=False).head
        setting: dict[str, int | str] = {"traces": traces, "tokens": tokens, "alike": head}
        yield from figures(SUITE, setting, taken, (ONE,))


def _memory(folder: str, embedder: Any) -> KVLogMemory:
    return KVLogMemory(folder, embedder=embedder)


def _trace(guide: str, number: int) -> Trace:
    messages = [
        {"role": "user", "content": f"How many boats came in on day {number}, and whence?"},
        {
            "role": "assistant",
            "content": f"On day {number}, {number % 17} boats came in, from harbour {number % 5}.",
        },
    ]
    if guide:
        messages.insert(0, {"role": "system", "content": guide})
    return Trace.from_messages(messages)

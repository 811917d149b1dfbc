"""Importing many traces: embedded, encoded and stored, one by one and together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

from benchmarks.performance.paired import Figure, Setting, figures, interleaved
from lag_integrations import KVLogMemory
from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.engine import Engine
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.trace import Trace

SUITE = "import, traces a second"
ONE, ALIKE, TOGETHER = "one by one, each read whole", "one by one", "together"
_KEPT = 512 * 2**20
_GUIDE = (
    "You answer for the harbour office. Say what you know, briefly, and with numbers where there "
    "are any. If something is not in the books, say that it is not, and where else one might ask. "
    "Boats are named by their flag and number; days are counted from the first of the year. "
)


def importing(engine: Engine, embedder: Any, rounds: int, traces: int) -> Iterator[Figure]:
    """Measure traces of an agent with a system message, and of one without."""
    for guide in ("", _GUIDE * 3):
        made = count()

        def way(kind: type[Engine], kept: int, guide: str = guide, made: Any = made) -> float:
            # A new one, which knows nothing of the rounds before.
            own = kind(engine.model, engine.tokenizer, prefix_cache_bytes=kept)
            chosen = [_trace(guide, next(made)) for _ in range(traces)]
            with (
                tempfile.TemporaryDirectory() as folder,
                KVLogMemory(folder, embedder=embedder) as memory,
            ):
                memory.attach(own)
                begun = time.perf_counter()
                memory.add_many(chosen)
                memory.flush()
                return traces / (time.perf_counter() - begun)

        ways = {
            ONE: partial(way, _OneByOne, 0),
            ALIKE: partial(way, _OneByOne, _KEPT),
            TOGETHER: partial(way, Engine, _KEPT),
        }
        rendered = engine.chat_template.render(_trace(guide, 0).messages, generate=False)
        tokens, alike = len(rendered.token_ids), rendered.head
        setting: Setting = {"traces": traces, "tokens": tokens, "alike": alike}
        yield from figures(SUITE, setting, interleaved(rounds, ways), (ONE,))


class _OneByOne(Engine):
    def encode_all(self, traces: Sequence[Encodable]) -> list[Segment]:
        return [super(_OneByOne, self).encode_all([trace])[0] for trace in traces]


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

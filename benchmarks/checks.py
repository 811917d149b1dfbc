"""What it costs not to believe files: ``python -m benchmarks.checks``.

Runs are logged, and their tasks asked again. Beside the time to the first token, what is measured
is what stands in it only for safety: the hash of a segment's file, the comparison of the
segment with model and trace, the look whether another process has deleted something (with which
the prefix cache's salt comes), and the search for control tokens in what is said.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.control_tokens import ControlTokens
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.trace import Trace

_WORDS = 60
"""Of each answer: some 80 tokens."""
_ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """Medians, in milliseconds.

    Attributes:
        first_token: To the first token, recall included, with the segment read from its file.
        held: The same with the segment in memory.
        file_hash: Of one file.
        comparison: Of one segment with model and trace.
        salt: The salt, and the look whether another process has deleted something, twice an answer.
        control_tokens: The search for control tokens in prompt and trace.
    """

    first_token: float
    held: float
    file_hash: float
    comparison: float
    salt: float
    control_tokens: float

    @property
    def share(self) -> float:
        """What part of the time to the first token is for safety, if a file is read."""
        return (self.file_hash + self.comparison + self._both_times) / self.first_token

    @property
    def share_held(self) -> float:
        """The same if the segment is in memory."""
        return self._both_times / self.held

    @property
    def _both_times(self) -> float:
        return 2 * self.salt + self.control_tokens


def measure(engine: Engine, logs: int, *, embedder: Any = None, rounds: int = _ROUNDS) -> Cost:
    """Log some runs, and ask for each again, several times.

    Args:
        engine: The model.
        logs: How many runs.
        embedder: Of the memory; the packaged one by default.
        rounds: How often each is asked for.
    """
    traces = [_trace(number) for number in range(logs)]
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"embedder": embedder, "k": 1, "min_score": -1.0}
        with KVLogMemory(folder, **settings) as memory:
            memory.attach(engine)
            memory.add_many(traces)
            memory.flush()
            held = _asked(engine, memory, traces, rounds)
        with KVLogMemory(folder, hot_bytes=0, **settings) as memory:
            memory.attach(engine)
            first_token = _asked(engine, memory, traces, rounds)
            store = memory.store
            files = [
                (*store.read(key, name), store.ledger.get([key.log_id])[key.log_id])
                for key, name, _ in store.segments.all_files()
            ]
            salt = median(
                _milliseconds(partial(memory.cache_salt, engine)) for _ in range(10 * rounds)
            )
            template = engine.chat_template
            control = ControlTokens(template.tokenizer, template.source, own=())
            searches = [
                _milliseconds(partial(control.mark_for, [trace.messages[0], *trace.messages], None))
                for trace in traces * rounds
            ]
            hashes, comparisons = [], []
            for segment, data, trace in files * rounds:
                hashes.append(_milliseconds(partial(sha256_hex, data)))
                comparisons.append(_milliseconds(partial(_compare, engine, segment, trace)))
    return Cost(first_token, held, median(hashes), median(comparisons), salt, median(searches))


def _trace(number: int) -> Trace:
    words = " ".join(f"step {number * _WORDS + word} was done" for word in range(_WORDS // 4))
    return Trace.from_messages(
        [
            {"role": "user", "content": f"How was machine {number} repaired?"},
            {"role": "assistant", "content": f"Machine {number}: {words}."},
        ],
        outcome="success",
    )


def _asked(engine: Engine, memory: KVLogMemory, traces: Sequence[Trace], rounds: int) -> float:
    model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=1)
    taken = []
    for number in range(rounds + 1):
        for trace in traces:
            engine.clear_salt(memory.store.cache_salt)  # each is read as if for the first time
            time_taken = _milliseconds(partial(model.invoke, trace.task))
            if number:  # the first time is slower
                taken.append(time_taken)
    return median(taken)


def _compare(engine: Engine, segment: Segment, trace: Trace) -> None:
    engine.encoder.check(segment, engine.encodable(trace))


def _milliseconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begun)


def show(cost: Cost, name: str) -> Table:
    """Return a table of the cost."""
    table = Table(title="What is not believed is checked", caption=f"{stamp()} · {name}")
    for column in ("", "ms"):
        table.add_column(column, justify="left" if not column else "right")
    for what, value in (
        ("first token, segment read from its file", cost.first_token),
        ("first token, segment in memory", cost.held),
        ("hash of the file", cost.file_hash),
        ("comparison with model and trace", cost.comparison),
        ("salt, with a look for deletions of others", cost.salt),
        ("search for control tokens", cost.control_tokens),
    ):
        table.add_row(what, f"{value:.2f}")
    table.add_row("share of safety, from a file", f"{cost.share:.1%}")
    table.add_row("share of safety, in memory", f"{cost.share_held:.1%}")
    return table


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checks", description=__doc__)
    parser.add_argument(
        "--model", default="smollm2-135m", help="A name of `packaged`, or a folder."
    )
    parser.add_argument("--logs", type=int, default=20)
    options = parser.parse_args()
    engine = Engine.load(packaged.resolve(options.model))
    Console().print(show(measure(engine, options.logs), Path(engine.name).name))


if __name__ == "__main__":
    main()

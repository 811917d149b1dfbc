"""Real ReAct traces, stored and asked again: ``python -m benchmarks.react``.

All traces are stored with their outcomes; the questions that were answered correctly are asked
once more, without any document. The model is to finish at once (``Finish[…``), with its memory as
KV, with the same tokens as text, or with nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.evaluation.as_text import generate_with_text
from lag_integrations.evaluation.datasets.react import load_traces
from lag_integrations.evaluation.scoring import contains, exact_match
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Outcome

_GENERATION: dict[str, Any] = {"max_new_tokens": 24, "stop": ["]"], "do_sample": False}
_ALL: tuple[Outcome, ...] = ("success", "failure", "unknown")


def main() -> None:
    """Run all arms and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.react", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with react/")
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument(
        "--placement", default="before_turn", choices=get_args(Placement), help="of the logs"
    )
    arguments = parser.parse_args()
    console = Console()
    traces = load_traces(arguments.data)
    engine = Engine.load(packaged.resolve(arguments.model))
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(folder) as memory,
        Progress(console=console) as progress,
    ):
        memory.attach(engine)
        memory.outcomes = _ALL
        for trace, _ in traces:
            memory.add(trace)
        bar = progress.add_task("Encoding the logs")
        memory.flush(lambda done, total: progress.update(bar, completed=done, total=total))
        arms = _arms(engine, memory, arguments.placement)
        questions = [(trace, gold) for trace, gold in traces if trace.outcome == "success"]
        table = Table("arm", "contains the gold answer", "exact match", "logs a question")
        table.title = (
            f"{len(traces)} ReAct traces stored, {len(questions)} questions asked again, "
            f"logs {arguments.placement.replace('_', ' ')}"
        )
        for name, answer in arms.items():
            bar = progress.add_task(name, total=len(questions))
            found = same = used = 0
            for trace, gold in questions:
                text, logs = answer(trace.task)
                found += contains(text, gold)
                same += exact_match(text, gold)
                used += logs
                progress.advance(bar)
            count = len(questions)
            table.add_row(
                name, f"{found / count:.0%}", f"{same / count:.0%}", f"{used / count:.1f}"
            )
    console.print(table)


def _arms(
    engine: Engine, memory: KVLogMemory, placement: Placement
) -> dict[str, Callable[[str], tuple[str, int]]]:
    def arm(
        way: str, k: int, *, floor: float | None, outcomes: tuple[Outcome, ...]
    ) -> Callable[[str], tuple[str, int]]:
        def answer(question: str) -> tuple[str, int]:
            messages = [
                Message(role="user", content=f"Question: {question}"),
                Message(role="assistant", content="Finish["),
            ]
            memory.outcomes = outcomes
            logs = memory.recall(question, k=k, min_score=floor)
            segments = memory.segments(logs)[::-1]
            generate = partial(generate_with_text, engine) if way == "text" else engine.generate
            generation = generate(messages, segments, placement=placement, **_GENERATION)
            return generation.text, len(logs)

        return answer

    gated: tuple[Outcome, ...] = ("success", "unknown")
    arms = {"no logs": arm("kv", 0, floor=None, outcomes=gated)}
    for k in (1, 3):
        for way in ("kv", "text"):
            arms[f"{way}, k = {k}, as shipped"] = arm(way, k, floor=None, outcomes=gated)
            arms[f"{way}, k = {k}, all logs, no floor"] = arm(way, k, floor=-1.0, outcomes=_ALL)
    return arms


if __name__ == "__main__":
    main()

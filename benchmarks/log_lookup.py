"""What log lookup saves: ``python -m benchmarks.log_lookup --data DIR``.

Questions of MuSiQue are answered behind their own log, where the answer can be read off, and behind
another one's, where it cannot; each with log lookup and without, in turns. Answers are long enough
to repeat a log, and greedy, so that both must be the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.performance.paired import Spread
from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.datasets import load
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.records import RecordFile
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message

_OWN, _OTHER = "its own log", "another one's log"
_MAX_TOKENS = 96


class Answered(BaseModel):
    """How one question was answered.

    Attributes:
        model: The model.
        logs: Whose log it was given.
        id: The question.
        same: Whether both answers are the same, token by token.
        tokens: Tokens of the answer.
        proposed: Those that log lookup proposed.
        accepted: Those of them that were right.
        seconds: From the first token to the last, with log lookup.
        plain_seconds: The same without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    logs: str
    id: str
    same: bool
    tokens: int
    proposed: int
    accepted: int
    seconds: float
    plain_seconds: float


def main() -> None:
    """Ask, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.log_lookup", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with musique/")
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--questions", type=int, default=100, help="how many")
    parser.add_argument("--out", type=Path, default=Path("results/log_lookup"), help="a folder")
    arguments = parser.parse_args()
    engine = Engine.load(packaged.resolve(arguments.model))
    name = Path(engine.name).name
    file: RecordFile[tuple[str, str, str], Answered] = RecordFile(
        arguments.out / "answers.jsonl", Answered, lambda one: (one.model, one.logs, one.id)
    )
    questions = load("musique", arguments.data, limit=arguments.questions).seen
    segments = [engine.encode(gold_trace(question)) for question in track(questions, "encoding")]
    for number, question in enumerate(track(questions, "asking")):
        for logs, place in ((_OWN, number), (_OTHER, (number + 1) % len(questions))):
            if (name, logs, question.id) not in file:
                told = _told(engine, question.text, segments[place], number)
                file.add(Answered(model=name, logs=logs, id=question.id, **told))
    table = _table(list(file))
    Console(width=150).print(table, stamp())


def _told(engine: Engine, question: str, segment: Segment, number: int) -> dict[str, Any]:
    """Answer with log lookup and without, the first of them in turns."""
    found = {}
    for lookup in (True, False) if number % 2 else (False, True):
        stream = engine.stream(
            [Message(role="user", content=question)],
            [segment],
            max_new_tokens=_MAX_TOKENS,
            temperature=0,
            log_lookup=lookup,
        )
        next(stream, None)
        begun = time.perf_counter()
        for _ in stream:
            pass
        found[lookup] = (stream.generation, time.perf_counter() - begun)
    (fast, seconds), (plain, plain_seconds) = found[True], found[False]
    return {
        "same": fast.token_ids == plain.token_ids,
        "tokens": len(plain.token_ids),
        "proposed": fast.proposed_tokens,
        "accepted": fast.accepted_tokens,
        "seconds": seconds,
        "plain_seconds": plain_seconds,
    }


def _table(found: Sequence[Answered]) -> Table:
    columns = ("model", "behind", "answers", "same", "tokens", "accepted", "of proposed")
    table = Table(*columns, "speed", "speed, all together")
    for model, logs in dict.fromkeys((one.model, one.logs) for one in found):
        rows = [one for one in found if (one.model, one.logs) == (model, logs)]
        # The first token is not part of the time: an answer of one has none.
        timed = [one for one in rows if one.tokens > 1]
        taken, right, proposed = (
            sum(one.tokens for one in rows),
            sum(one.accepted for one in rows),
            sum(one.proposed for one in rows),
        )
        whole = sum(one.plain_seconds for one in timed) / sum(one.seconds for one in timed)
        table.add_row(
            model,
            logs,
            str(len(rows)),
            str(sum(one.same for one in rows)),
            str(taken),
            f"{right / taken:.0%}",
            f"{right / proposed:.0%}" if proposed else "-",
            str(Spread.of(list(_ratios(timed)))),
            f"{whole:.2f}",
        )
    return table


def _ratios(rows: Sequence[Answered]) -> Iterator[float]:
    for one in rows:
        yield one.plain_seconds / one.seconds


if __name__ == "__main__":
    main()

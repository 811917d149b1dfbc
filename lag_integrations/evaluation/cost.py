"""What injecting costs: ``python -m lag_integrations.evaluation.cost``.

Time to first token with three recalled logs, against the bare prompt and against the same tokens as
text, in one run: the three ways take turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from datetime import date

import torch
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from lag_integrations import packaged
from lag_integrations.engine import Engine
from lag_integrations.evaluation.as_text import generate_with_text
from lag_integrations.memory import KVLogMemory
from lag_integrations.store.embedder import load_embedder
from lag_integrations.trace import Message, Trace

_QUESTION = "{tokens}, {number}: What did the survey of the northern harbours find?"
_FACTS = "The survey of harbour {n} found {m} piers, {m} cranes and a lighthouse in need of paint. "


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--rounds", type=int, default=9, help="times each way is measured")
    arguments = parser.parse_args()
    engine = Engine.load(arguments.model or packaged.chat_model())
    console = Console()
    table = Table("log tokens", "bare", "KV injected", "as text", "KV / bare", "text / KV")
    table.title = "Time to first token, three logs (median, seconds)"
    for tokens in (250, 1000):
        bare, injected, text, count = _measure(engine, tokens, arguments.rounds)
        table.add_row(
            str(count),
            *(f"{seconds:.3f}" for seconds in (bare, injected, text)),
            f"{injected / bare:.2f}x",
            f"{text / injected:.1f}x",
        )
    device = torch.cuda.get_device_name() if engine.model.device.type == "cuda" else "CPU"
    table.caption = (
        f"{date.today()} · {platform.machine()}, {device}, {torch.get_num_threads()} threads · "
        f"torch {torch.__version__} · recall and loading from disk included in KV and in text"
    )
    console.print(table)


def _measure(engine: Engine, tokens: int, rounds: int) -> tuple[float, float, float, int]:
    embedder = load_embedder()
    found = [_round(engine, embedder, tokens, number) for number in range(rounds + 1)]
    bare, injected, text = (
        statistics.median(times[way] for times, _ in found[1:])  # the first round warms up
        for way in ("bare", "injected", "text")
    )
    return bare, injected, text, max(count for _, count in found)


def _round(
    engine: Engine, embedder: SentenceTransformer, tokens: int, number: int
) -> tuple[dict[str, float], int]:
    """Seconds of each way, and tokens injected; with logs and a question of the round's own.

    What was read lately is not read again: with the same logs, nothing would be left to measure.
    """
    question = Message(role="user", content=_QUESTION.format(tokens=tokens, number=number))
    times, count = {}, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(folder, embedder=embedder, min_score=-1.0) as memory,
    ):
        memory.attach(engine)
        for harbour in range(3):
            answer = f"Year {number}. "
            while len(engine.tokenizer(answer)["input_ids"]) < tokens / 3 - 10:
                answer += _FACTS.format(n=harbour, m=len(answer))
            task = f"{number}: What did the survey of harbour {harbour} find?"
            memory.add(
                Trace.from_messages(
                    [{"role": "user", "content": task}, {"role": "assistant", "content": answer}]
                )
            )
        memory.flush()
        for way in ("bare", "injected", "text"):
            started = time.perf_counter()
            logs = [] if way == "bare" else memory.recall(question.text)
            segments = memory.segments(logs)[::-1]
            recall = time.perf_counter() - started
            generate = generate_with_text if way == "text" else Engine.generate
            generation = generate(engine, [question], segments, max_new_tokens=1, do_sample=False)
            times[way] = recall + generation.time_to_first_token
            count = max(count, generation.injected_tokens)
    return times, count


if __name__ == "__main__":
    main()

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

from lag_integrations import packaged
from lag_integrations.engine import Engine
from lag_integrations.evaluation.as_text import generate_with_text
from lag_integrations.memory import KVLogMemory
from lag_integrations.trace import Message, Trace

_QUESTION = "{number}: What did the survey of the northern harbours find?"
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
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, min_score=-1.0) as memory:
        memory.attach(engine)
        for number in range(3):
            answer = ""
            while len(engine.tokenizer(answer)["input_ids"]) < tokens / 3 - 10:
                answer += _FACTS.format(n=number, m=len(answer))
            task = f"What did the survey of harbour {number} find?"
            memory.add(
                Trace.from_messages(
                    [
                        {"role": "user", "content": task},
                        {"role": "assistant", "content": answer},
                    ]
                )
            )
        memory.flush()
        times: dict[str, list[float]] = {"bare": [], "injected": [], "text": []}
        count = 0
        for number in range(rounds + 1):  # the first round warms up
            # Another question each time: what was read lately is not read again.
            question = Message(role="user", content=_QUESTION.format(number=number))
            for way, taken in times.items():
                started = time.perf_counter()
                logs = [] if way == "bare" else memory.recall(question.text)
                segments = memory.segments(logs)[::-1]
                recall = time.perf_counter() - started
                if way == "text":
                    generation = generate_with_text(
                        engine, [question], segments, max_new_tokens=1, do_sample=False
                    )
                else:
                    generation = engine.generate(
                        [question], segments, max_new_tokens=1, do_sample=False
                    )
                taken.append(recall + generation.time_to_first_token)
                count = max(count, generation.injected_tokens)
        bare, injected, text = (statistics.median(taken[1:]) for taken in times.values())
        return bare, injected, text, count


if __name__ == "__main__":
    main()

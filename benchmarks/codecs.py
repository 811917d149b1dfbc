"""What each codec costs and keeps: ``python -m benchmarks.codecs --data DIR``.

Logs are encoded once, put through the file of each codec, and given back to the model when their
question is asked again, one log a question; the model is to finish at once (``Finish[…``). There
are real ReAct runs, among all of which the nearest one is recalled, and logs made of the gold
reasoning of MuSiQue questions, of which each question gets its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.evaluation.datasets.react import load_traces
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.scoring import contains, exact_match
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.embedder import Embedder
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_CODECS = ("native", "bf16", "fp16", "fp8", "int8", "int4", "native+zstd", "int8+zstd", "int4+zstd")
_MUSIQUE = 100


@dataclass(frozen=True)
class Question:
    """A question, the log that is recalled for it, and the right answer."""

    text: str
    log: Trace
    gold: str


@dataclass
class Arm:
    """What was measured with one codec, one entry a question."""

    sizes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def distance(self, reference: Arm) -> float:
        """Return mean difference of the first token's logits, in their standard deviations."""
        pairs = list(zip(self.logits, reference.logits, strict=True))
        return sum(float((a - b).abs().mean() / b.std()) for a, b in pairs) / len(pairs)


def react_questions(data: Path) -> list[Question]:
    """Return the ReAct questions that were solved, each with the nearest of all the logs."""
    traces = load_traces(data)
    embedder = Embedder(packaged.embedder())
    stored = embedder.embed([trace.task for trace, _ in traces])
    solved = [(trace.task, gold) for trace, gold in traces if trace.outcome == "success"]
    nearest = (embedder.embed([task for task, _ in solved]) @ stored.T).argmax(1)
    return [
        Question(task, traces[index][0], gold)
        for (task, gold), index in zip(solved, nearest.tolist(), strict=True)
    ]


def musique_questions(data: Path) -> list[Question]:
    """Return MuSiQue questions, each with a log that reasons through its decomposition."""
    questions = []
    for row in json.loads((data / "musique" / "train.json").read_text("utf-8"))[:_MUSIQUE]:
        answers: list[str] = []
        lines: list[str] = []
        for step in row["question_decomposition"]:
            asked = step["question"]
            for number, answer in enumerate(answers, start=1):
                asked = asked.replace(f"#{number}", answer)  # how earlier answers are referred to
            answers.append(step["answer"])
            lines.append(f"{asked}: {step['answer']}")
        messages = [
            Message(role="user", content=f"Question: {row['question']}"),
            Message(role="assistant", content="\n".join([*lines, f"Finish[{row['answer']}]"])),
        ]
        trace = Trace.from_messages(messages, task=row["question"], outcome="success")
        questions.append(Question(row["question"], trace, row["answer"]))
    return questions


def main() -> None:
    """Run all codecs and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with react/ and musique/")
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--questions", type=int, help="of each kind, for a quick run; default: all")
    arguments = parser.parse_args()
    console = Console()
    engine = Engine.load(packaged.resolve(arguments.model))
    react = react_questions(arguments.data)[: arguments.questions]
    musique = musique_questions(arguments.data)[: arguments.questions]
    questions = [*react, *musique]
    with Progress(console=console) as progress:
        bar = progress.add_task("Encoding the logs", total=len(questions))
        segments = []
        for question in questions:
            segments.append(engine.encode(question.log, LastTurn()))
            progress.advance(bar)
        arms = {}
        for name in _CODECS:
            bar = progress.add_task(name, total=len(questions))
            done = partial(progress.advance, bar)
            arms[name] = _measure(engine, name, questions, segments, done)
    console.print(_table(engine, arms, react, musique, segments))


def _measure(
    engine: Engine,
    name: str,
    questions: Sequence[Question],
    segments: Sequence[Segment],
    done: Callable[[], None],
) -> Arm:
    arm = Arm()
    for question, segment in zip(questions, segments, strict=True):
        key = SegmentKey(question.log.id, segment.fingerprint, LastTurn().name, name)
        if not arm.sizes:
            # The first time is slower.
            file = dump_segment(segment, key)
            load_segment(file, key, sha256_hex(file))
        begun = time.perf_counter()
        file = dump_segment(segment, key)
        stored = load_segment(file, key, sha256_hex(file))
        arm.seconds.append(time.perf_counter() - begun)
        arm.sizes.append(len(file))
        text, logits = _answer(engine, question.text, stored)
        arm.answers.append(text)
        arm.logits.append(logits)
        done()
    return arm


def _answer(engine: Engine, question: str, segment: Segment) -> tuple[str, torch.Tensor]:
    """Return the answer, and the logits of its first token."""
    logits: list[torch.Tensor] = []

    hook = engine.model.get_output_embeddings().register_forward_hook(
        lambda _, __, scores: logits.append(scores[0, -1].float().cpu())
    )
    generation = engine.generate(
        [
            Message(role="user", content=f"Question: {question}"),
            Message(role="assistant", content="Finish["),
        ],
        [segment],
        max_new_tokens=24,
        stop=["]"],
        do_sample=False,
    )
    hook.remove()
    # One a token; the head of the prompt may have been read before.
    return generation.text, logits[-len(generation.token_ids)]


def _table(
    engine: Engine,
    arms: dict[str, Arm],
    react: Sequence[Question],
    musique: Sequence[Question],
    segments: Sequence[Segment],
) -> Table:
    def scores(answers: Sequence[str], questions: Sequence[Question]) -> str:
        pairs = [(a, q.gold) for a, q in zip(answers, questions, strict=True)]
        shares = (sum(hit(*pair) for pair in pairs) / len(pairs) for hit in (contains, exact_match))
        return " / ".join(f"{100 * share:.0f}" for share in shares)

    native = arms["native"]
    table = Table("codec", "kB a log", "smaller", "ms", "logits", "ReAct, %", "MuSiQue, %")
    table.title = f"{len(react)} ReAct and {len(musique)} MuSiQue questions asked again, k = 1"
    for name, arm in arms.items():
        table.add_row(
            name,
            f"{sum(arm.sizes) / len(arm.sizes) / 1000:,.0f}",
            f"{sum(native.sizes) / sum(arm.sizes):.2f}x",
            f"{1000 * sum(arm.seconds) / len(arm.seconds):.1f}",
            f"{arm.distance(native):.4f}",
            scores(arm.answers[: len(react)], react),
            scores(arm.answers[len(react) :], musique),
        )
    table.caption = (
        f"{sum(map(len, segments)) / len(segments):.0f} tokens a log in "
        f"{str(segments[0].slots[0][0].dtype).removeprefix('torch.')} · ms: encoding and decoding "
        "a log, without disk · logits: mean difference from native, in standard deviations · "
        "%: contains the gold answer / exact match\n"
        f"{stamp()}"
    )
    return table


if __name__ == "__main__":
    main()

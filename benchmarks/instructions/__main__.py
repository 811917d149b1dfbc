"""Instructions with logs present: ``python -m benchmarks.instructions``.

Sixty questions, each with a demand on the form of its answer that a program can check. A memory
holds runs on the same subjects, which answered in plain prose. Asked without logs,
and with the three nearest, whatever their relevance, as KV and as text.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage
from pydantic import BaseModel, ConfigDict

from benchmarks.asked import AnswerFile, Asked, ask, report
from benchmarks.instructions.constraints import CONSTRAINTS, Constraint
from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.trace import Trace

_NONE = "no logs"
_GIVEN: dict[str, Any] = {"k": 3, "min_score": -1.0}
_WAYS: dict[str, dict[str, Any]] = {
    _NONE: {"k": 0},
    "KV": _GIVEN,
    "text": {**_GIVEN, "logs_as_text": True},
}
_STEPS = (0, 7, 13)
"""Each subject gets the constraints that are so many places after its own."""
_MAX_TOKENS = 128


class Topic(BaseModel):
    """A subject.

    Attributes:
        id: Its name.
        logged: What the run in the memory was asked.
        answer: What it answered.
        question: What is asked now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    logged: str
    answer: str
    question: str

    def as_run(self) -> Trace:
        """Return the run in the memory."""
        said = [
            {"role": "user", "content": self.logged},
            {"role": "assistant", "content": self.answer},
        ]
        return Trace.from_messages(said, outcome="success")


def topics() -> list[Topic]:
    """Return the subjects."""
    lines = files(__package__).joinpath("topics.jsonl").read_text("utf-8").split("\n")
    return [Topic.model_validate_json(line) for line in lines if line]


def questions() -> Iterator[Asked]:
    """Yield three questions on each subject; of each constraint there are three, too."""
    for number, topic in enumerate(topics()):
        for step in _STEPS:
            constraint = CONSTRAINTS[(number + step) % len(CONSTRAINTS)]
            prompt = f"{topic.question} {constraint.text}"
            name = f"{topic.id}, {constraint.name}"
            yield Asked(name, "all", [HumanMessage(prompt)], _judge(constraint))


def _judge(constraint: Constraint) -> Any:
    return lambda answer: (constraint.judge(answer), None)


def main() -> None:
    """Ask, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--questions", type=int, help="how many; all by default")
    parser.add_argument("--out", type=Path, default=Path("results/instructions"), help="a folder")
    arguments = parser.parse_args()
    file = AnswerFile(arguments.out / "answers.jsonl")
    engine = Engine.load(packaged.resolve(arguments.model))
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder) as memory:
        memory.attach(engine)
        memory.add_many(topic.as_run() for topic in topics())
        memory.flush()
        model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=_MAX_TOKENS)
        for way, settings in _WAYS.items():
            ask(file, model, way, list(questions())[: arguments.questions], **settings)
    text = report(
        file, "Instructions kept to", _NONE, f"{stamp()} · greedy, at most {_MAX_TOKENS} tokens"
    )
    (arguments.out / "report.md").write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()

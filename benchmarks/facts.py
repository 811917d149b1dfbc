"""Facts that later ones replace: ``python -m benchmarks.facts --data DIR``.

FactConsolidation of MemoryAgentBench (arXiv 2507.05257), single hop: some 450 facts in their order,
many of which contradict an earlier one; the later is right. Each was told to the model in a run of
its own. Then it is asked for them: without logs, with those that are recalled, as KV and as text,
and with all facts in the prompt.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from pydantic import BaseModel

from benchmarks.asked import AnswerFile, Asked, ask, report
from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.datasets.files import Folder, checked, read_json
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.scoring import contains, normalize
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.trace import Trace

ALL = "all facts in the prompt"
_WAYS: dict[str, dict[str, Any]] = {
    "no logs": {"k": 0},
    "KV": {},
    "text": {"logs_as_text": True},
    ALL: {"k": 0},
}
_FILE = "factconsolidation_sh_6k.json"
_SYSTEM = (
    "Answer in a few words, by what you were told, whether or not it is true. Where you were told "
    "different things, what was told last counts."
)
_MAX_TOKENS = 24
_NUMBERED = re.compile(r"\d+\. (.+)")


@dataclass(frozen=True)
class Case:
    """A question, its answers by the newest fact, and what older facts say.

    Attributes:
        question: The question.
        answers: What is right.
        older: What was, before a later fact replaced it.
    """

    question: str
    answers: tuple[str, ...]
    older: tuple[str, ...]

    def judge(self, answer: str) -> tuple[bool, bool | None]:
        """Tell whether an answer is right, and whether it is what was replaced."""
        right = any(contains(answer, gold) for gold in self.answers)
        if not self.older:
            return right, None
        return right, not right and any(contains(answer, other) for other in self.older)


class _File(BaseModel):
    context: str
    questions: list[str]
    answers: list[list[str]]


def load(data: Path, number: int) -> tuple[list[str], list[Case]]:
    """Read the facts in their order, and questions.

    Args:
        data: A folder with ``facts``.
        number: How many questions at most.

    Raises:
        EvaluationError: The file is missing or malformed.
    """
    path = Folder(data, "facts", ".").file(_FILE)
    (read,) = checked(_File, [(str(path), read_json(path))])
    facts = [found[1] for line in read.context.split("\n") if (found := _NUMBERED.match(line))]
    pairs = zip(read.questions[:number], read.answers, strict=False)
    return facts, [
        Case(question, tuple(answers), tuple(older_objects(facts, question, answers)))
        for question, answers in pairs
    ]


def older_objects(facts: Sequence[str], question: str, answers: Sequence[str]) -> Iterator[str]:
    """Yield what other facts say in place of a right answer.

    Args:
        facts: The facts, such as "The capital of Romania is Rajanpur."
        question: What is asked; of several facts with the answer, the one like it is meant.
        answers: What is right.
    """
    told = [fact.rstrip(".") for fact in facts]
    asked = set(normalize(question).split())
    starts = [
        fact.removesuffix(answer) for answer in answers for fact in told if fact.endswith(answer)
    ]
    if not starts:
        return
    meant = max(starts, key=lambda start: len(asked & set(normalize(start).split())))
    for fact in told:
        if fact.startswith(meant) and fact.removeprefix(meant) not in answers:
            yield fact.removeprefix(meant)


def as_run(fact: str) -> Trace:
    """Return the run in which a fact was told."""
    said = [
        {"role": "user", "content": fact},
        {"role": "assistant", "content": f"Noted: {fact}"},
    ]
    return Trace.from_messages(said, outcome="success")


def main() -> None:
    """Tell, ask, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.facts", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=f"folder with facts/{_FILE}")
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--questions", type=int, default=100, help="how many")
    parser.add_argument("--out", type=Path, default=Path("results/facts"), help="a folder")
    arguments = parser.parse_args()
    facts, cases = load(arguments.data, arguments.questions)
    file = AnswerFile(arguments.out / "answers.jsonl")
    engine = Engine.load(packaged.resolve(arguments.model))
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder) as memory:
        memory.attach(engine)
        memory.add_many(map(as_run, facts))
        memory.flush()
        model = LAGChatModel(engine, memory=memory, temperature=0, max_tokens=_MAX_TOKENS)
        for way, settings in _WAYS.items():
            told = "\n".join(f"{n}. {fact}" for n, fact in enumerate(facts)) if way == ALL else ""
            ask(
                file,
                model,
                way,
                [_asked(*numbered, told) for numbered in enumerate(cases)],
                **settings,
            )
    about = f"{stamp()} · greedy, at most {_MAX_TOKENS} tokens"
    text = report(file, f"FactConsolidation, {len(facts)} facts", ALL, about)
    (arguments.out / "report.md").write_text(text, "utf-8")
    print(text)


def _asked(number: int, case: Case, told: str) -> Asked:
    prompt = f"What you were told, in order:\n{told}\n\n{case.question}" if told else case.question
    kind = "told otherwise before" if case.older else "told once"
    return Asked(str(number), kind, [SystemMessage(_SYSTEM), HumanMessage(prompt)], case.judge)


if __name__ == "__main__":
    main()

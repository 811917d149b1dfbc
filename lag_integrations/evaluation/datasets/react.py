"""Real ReAct runs on HotpotQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from lag_integrations.evaluation.datasets.files import Folder, read_rows
from lag_integrations.evaluation.questions import Dataset, Question
from lag_integrations.traces.trace import Outcome, Trace

_OUTCOMES: dict[str, Outcome] = {"correct": "success", "incorrect": "failure", "halted": "failure"}


class _Step(BaseModel):
    kind: Literal["thought", "action", "observation"]
    n: int
    text: str


class _Run(BaseModel):
    question: str
    outcome: Literal["correct", "incorrect", "halted"]
    gold_answer: str
    steps: list[_Step]


def load(data: Path, seed: int) -> Dataset:
    """Load all runs as logs, and the questions of the correct ones, without documents.

    Raises:
        EvaluationError: The file is missing or malformed.
    """
    runs = load_traces(data)
    seen = tuple(
        Question(str(trace.metadata["question_id"]), trace.task, (gold,))
        for trace, gold in runs
        if trace.outcome == "success"
    )
    return Dataset("ReAct runs on HotpotQA", seen, logs=tuple(trace for trace, _ in runs))


def load_traces(data: Path) -> list[tuple[Trace, str]]:
    """Load the ReAct runs as traces, each with its gold answer.

    A thought and its action are one assistant message, an observation is a tool's result; the last
    observation, which gives away whether the answer was right, is left out.

    Raises:
        EvaluationError: The file is missing or malformed.
    """
    traces = []
    path = Folder(data, "react").file("hotpotqa_traces.json")
    for number, run in enumerate(read_rows(path, _Run)):
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"Question: {run.question}"}]
        for step in run.steps:
            if step.kind == "observation" and step.text.startswith("Answer is"):
                continue
            text = f"{step.kind.capitalize()} {step.n}: {step.text}"
            role = "tool" if step.kind == "observation" else "assistant"
            if messages[-1]["role"] == role == "assistant":
                messages[-1]["content"] += f"\n{text}"
            else:
                messages.append({"role": role, "content": text})
        trace = Trace.from_messages(
            messages,
            task=run.question,
            outcome=_OUTCOMES[run.outcome],
            metadata={"question_id": f"react_{number}"},
        )
        traces.append((trace, run.gold_answer))
    return traces

"""Answers that must say something: asked in several ways, written down, and counted."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage
from pydantic import BaseModel, ConfigDict
from rich.progress import track

from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.records import RecordFile
from lag_integrations.evaluation.report import as_markdown
from lag_integrations.evaluation.statistics import difference, interval
from lag_integrations.evaluation.tables import Grid, Row, percent, points, with_ends
from lag_integrations.langchain import LAGChatModel


class Answered(BaseModel):
    """How a question was answered in one way.

    Attributes:
        model: Name of the model.
        way: How it was asked.
        id: The question.
        kind: The row of a table in which it counts.
        answer: What the model said.
        right: Whether that is what it should say; None where nobody can know.
        outdated: Whether it is what was right before, and not what is; None if nothing changed.
        calls: Calls of the model.
        logs: Logs that the last call was given; None where they are part of its messages.
        computed_tokens: Prompt tokens that were read, in all calls.
        injected_tokens: Prompt tokens whose KV was injected, in all calls.
        seconds: What it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    way: str
    id: str
    kind: str
    answer: str
    right: bool | None
    outdated: bool | None = None
    calls: int = 1
    logs: int | None = 0
    computed_tokens: int
    injected_tokens: int
    seconds: float


class AnswerFile(RecordFile[tuple[str, str, str], Answered]):
    """Answers in a file, by model, way and question.

    Args:
        path: The file.

    Raises:
        EvaluationError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, Answered, lambda one: (one.model, one.way, one.id))


@dataclass(frozen=True)
class Asked:
    """A question to a chat model.

    Attributes:
        id: Its name.
        kind: The row of a table in which it counts.
        messages: What the model is given.
        judge: Tells of an answer whether it is right, and whether outdated (see `Answered`).
    """

    id: str
    kind: str
    messages: Sequence[BaseMessage]
    judge: Callable[[str], tuple[bool | None, bool | None]]


def ask(
    file: AnswerFile, model: LAGChatModel, way: str, questions: Sequence[Asked], **settings: Any
) -> None:
    """Ask a chat model what is not written down yet.

    Args:
        file: Where answers are kept.
        model: The model, with its memory.
        way: Name of the way of asking.
        questions: The questions.
        **settings: Settings of the call, which make the way.
    """
    name = name_of(model.engine)
    for question in track(questions, description=way):
        if (name, way, question.id) in file:
            continue
        started = time.perf_counter()
        message = model.invoke(list(question.messages), **settings)
        right, outdated = question.judge(message.text)
        file.add(
            Answered(
                model=name,
                way=way,
                id=question.id,
                kind=question.kind,
                answer=message.text,
                right=right,
                outdated=outdated,
                **figures_of([message], started),
            )
        )


def name_of(engine: Engine) -> str:
    """Return the name of a model; of a folder, the last part."""
    return Path(engine.name).name if Path(engine.name).is_dir() else engine.name


def says(answer: str, pattern: str) -> bool:
    """Return whether an answer holds something, as a word of its own, in whichever case.

    Args:
        answer: What was answered.
        pattern: A regular expression of it.
    """
    return re.search(rf"(?<!\w)(?:{pattern})(?!\w)", answer, re.IGNORECASE) is not None


def figures_of(messages: Sequence[AIMessage], started: float) -> dict[str, Any]:
    """Return what some calls of a `LAGChatModel` took, as the last attributes of `Answered`.

    Args:
        messages: Its answers, in order.
        started: When they began, by `time.perf_counter`.
    """
    usage = [message.usage_metadata for message in messages]
    return figures(
        [message.response_metadata["lag"] for message in messages],
        sum(one["input_tokens"] for one in usage if one),
        time.perf_counter() - started,
    )


def figures(lags: Sequence[Mapping[str, Any]], read: int, seconds: float) -> dict[str, Any]:
    """Return what some calls took, as the last attributes of `Answered`.

    Args:
        lags: What each call said of its logs.
        read: Prompt tokens of all calls.
        seconds: What they took.
    """
    injected = sum(lag["injected_tokens"] for lag in lags)
    return {
        "calls": len(lags),
        "logs": len(lags[-1]["log_ids"]) if lags else 0,
        "computed_tokens": read - injected - sum(lag["reused_tokens"] for lag in lags),
        "injected_tokens": injected,
        "seconds": seconds,
    }


def report(answers: Iterable[Answered], title: str, baseline: str, about: str) -> str:
    """Return a table for each kind of question, and one of all where there are several.

    Args:
        answers: What was answered.
        title: What the tables are about.
        baseline: The way that the others are compared with.
        about: How and when it was measured.
    """
    grids = _grids(answers, title, baseline)
    return "\n".join([*map(as_markdown, grids), f"{about}\n"])


def _grids(answers: Iterable[Answered], title: str, baseline: str) -> list[Grid]:
    found = list(answers)
    kinds = list(dict.fromkeys(one.kind for one in found))
    parts = [(kind, [one for one in found if one.kind == kind]) for kind in kinds]
    if sum(any(one.right is not None for one in some) for _, some in parts) > 1:
        parts.append(("all", [one for one in found if one.right is not None]))
    return [_grid(f"{title}: {kind}", some, baseline) for kind, some in parts]


_HEADER = (
    "model",
    "asked",
    "n",
    "right %",
    "against",
    "outdated %",
    "given a log %",
    "calls",
    "tokens read",
    "injected",
    "seconds",
)


def _grid(title: str, answers: Sequence[Answered], baseline: str) -> Grid:
    rows = []
    for model in dict.fromkeys(one.model for one in answers):
        ways: dict[str, list[Answered]] = {}
        for one in answers:
            if one.model == model:
                ways.setdefault(one.way, []).append(one)
        before = {one.id: one.right for one in ways.get(baseline, ()) if one.right is not None}
        rows += [Row((model, way, *_cells(of, before)), False) for way, of in ways.items()]
    return Grid(title, (*_HEADER[:4], f"against {baseline}", *_HEADER[5:]), tuple(rows))


def _cells(answers: Sequence[Answered], before: dict[str, bool]) -> tuple[str, ...]:
    right = [one.right for one in answers if one.right is not None]
    both = [
        (one.right, before[one.id]) for one in answers if one.right is not None and one.id in before
    ]
    changed = [one.outdated for one in answers if one.outdated is not None]
    count = len(answers)
    given = [one.logs > 0 for one in answers if one.logs is not None]
    against = (
        points(difference([now for now, _ in both], [then for _, then in both])) if both else "-"
    )
    return (
        f"{count:,}",
        with_ends(interval(right)) if right else "-",
        against,
        with_ends(interval(changed)) if changed else "-",
        percent(sum(given) / count) if len(given) == count else "-",
        f"{sum(one.calls for one in answers) / count:.1f}",
        f"{sum(one.computed_tokens for one in answers) / count:,.0f}",
        f"{sum(one.injected_tokens for one in answers) / count:,.0f}",
        f"{sum(one.seconds for one in answers) / count:.2f}",
    )

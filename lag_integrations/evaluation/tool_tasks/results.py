"""From records to figures: how each arm did, and whether it differs from others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.results import BASELINE, Comparison
from lag_integrations.evaluation.statistics import Interval, difference, interval
from lag_integrations.evaluation.tool_tasks.judge import Failure
from lag_integrations.evaluation.tool_tasks.records import TaskRecord
from lag_integrations.evaluation.tool_tasks.run import Effort


@dataclass(frozen=True)
class ArmFigures:
    """How one arm did on the unseen tasks.

    Attributes:
        arm: The arm.
        tasks: How many it was asked.
        tasks_right: Share of tasks of which every turn is right.
        turns_right: Share of a task's turns that are right, up to the first wrong one; its mean
            over tasks.
        failures: Share of tasks that are wrong, by why.
        errors: How many tasks ended with which error.
        without_log: Share of tasks for which no log was given; None for the baseline.
        turns_asked: Mean of the turns that were worked on.
        effort: What one of these turns took, by the name of the field of `Effort`.
    """

    arm: str
    tasks: int
    tasks_right: Interval
    turns_right: Interval
    failures: Mapping[Failure, float]
    errors: Mapping[str, int]
    without_log: float | None
    turns_asked: float
    effort: Mapping[str, float]


@dataclass(frozen=True)
class ToolResults:
    """All figures of an evaluation.

    Attributes:
        figures: Each arm, the baseline first.
        tasks: By the name of the other arm, the differences of tasks right to it.
        turns: Likewise of turns right; what is gained and harmed are tasks with more, and with
            fewer right turns.
    """

    figures: Sequence[ArmFigures]
    tasks: Mapping[str, Sequence[Comparison]]
    turns: Mapping[str, Sequence[Comparison]]


_Asked = Mapping[str, TaskRecord]
_Score = Callable[[TaskRecord], float]


def summarize(records: Iterable[TaskRecord], *, against: str = "text_last") -> ToolResults:
    """Summarize the records of unseen tasks.

    Args:
        records: The records; of seen tasks, which become logs, there are no figures.
        against: An arm to compare the others with, next to the baseline.

    Raises:
        EvaluationError: There are no such records.
    """
    arms: dict[str, dict[str, TaskRecord]] = {}
    for record in records:
        if not record.seen:
            arms.setdefault(record.arm, {})[record.task_id] = record
    if not arms:
        raise EvaluationError("There are no records to report; run an evaluation first.")
    arms = dict(sorted(arms.items(), key=lambda item: item[0] != BASELINE))
    others = [name for name in dict.fromkeys((BASELINE, against)) if name in arms]
    return ToolResults(
        [_figures(arm, list(asked.values())) for arm, asked in arms.items()],
        {other: _comparisons(other, arms, _task_right) for other in others},
        {other: _comparisons(other, arms, _turns_right) for other in others},
    )


def _task_right(record: TaskRecord) -> float:
    return float(record.failure is None)


def _turns_right(record: TaskRecord) -> float:
    return record.turns_right / record.turns


def _figures(arm: str, records: Sequence[TaskRecord]) -> ArmFigures:
    turns = sum(record.turns_asked for record in records)
    failures = Counter(record.failure for record in records if record.failure)
    return ArmFigures(
        arm=arm,
        tasks=len(records),
        tasks_right=interval(list(map(_task_right, records))),
        turns_right=interval(list(map(_turns_right, records))),
        failures={reason: count / len(records) for reason, count in failures.items()},
        errors=Counter(record.error for record in records if record.error),
        without_log=None if arm == BASELINE else fmean(not record.logs for record in records),
        turns_asked=turns / len(records),
        effort={
            name: sum(getattr(record.effort, name) for record in records) / turns
            for name in Effort.model_fields
        },
    )


def _comparisons(other: str, arms: Mapping[str, _Asked], score: _Score) -> list[Comparison]:
    """Compare all other arms with one, over the tasks that both were asked."""
    found = []
    for arm, asked in arms.items():
        if arm in (other, BASELINE):
            continue
        pairs = [
            (score(record), score(arms[other][id]))
            for id, record in asked.items()
            if id in arms[other]
        ]
        if pairs:
            found.append(
                Comparison(
                    arm,
                    other,
                    questions=len(pairs),
                    difference=difference([one for one, _ in pairs], [two for _, two in pairs]),
                    gained=fmean(one > two for one, two in pairs),
                    harmed=fmean(one < two for one, two in pairs),
                )
            )
    return found

"""What an evaluation of tool tasks writes down: one line a task and arm."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from lag_integrations.evaluation.records import RecordFile
from lag_integrations.evaluation.tool_tasks.judge import Failure
from lag_integrations.evaluation.tool_tasks.run import Effort, TaskRun


class TaskRecord(BaseModel):
    """How one arm did on one task.

    Attributes:
        arm: Name of the arm.
        task_id: The task.
        seen: Whether logs are made of the task.
        turns: Turns of the task.
        turns_asked: Turns that were worked on: up to the first wrong one.
        turns_right: Those of them that are right.
        failure: Why the task is wrong; None if it is right.
        error: Name of the error that ended it, if one did.
        effort: What it took.
        logs: The turns (ids) of the logs that were given; other logs by their log id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    task_id: str
    seen: bool
    turns: int
    turns_asked: int
    turns_right: int
    failure: Failure | None
    error: str | None
    effort: Effort
    logs: tuple[str, ...]

    @classmethod
    def of(cls, run: TaskRun, *, seen: bool) -> TaskRecord:
        """Make the record of a run."""
        logs = (log.trace.metadata.get("question_id", log.id) for log in run.logs.values())
        return cls(
            arm=run.arm,
            task_id=run.task.id,
            seen=seen,
            turns=len(run.task.asked),
            turns_asked=len(run.turns),
            turns_right=run.turns_right,
            failure=run.failure,
            error=run.error,
            effort=run.effort,
            logs=tuple(dict.fromkeys(map(str, logs))),
        )


class TaskRecords(RecordFile[tuple[str, str], TaskRecord]):
    """The records in a file, by arm and task.

    Args:
        path: The file.

    Raises:
        EvaluationError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, TaskRecord, lambda record: (record.arm, record.task_id))

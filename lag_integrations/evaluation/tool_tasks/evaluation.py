"""The protocol: logs of the seen tasks, then the unseen ones with every arm."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.arms import ARMS, Arm
from lag_integrations.evaluation.records import cut_to_lines
from lag_integrations.evaluation.results import BASELINE
from lag_integrations.evaluation.storing import Progress, flush
from lag_integrations.evaluation.tool_tasks.agent import ToolAgent
from lag_integrations.evaluation.tool_tasks.gold import gold_traces
from lag_integrations.evaluation.tool_tasks.judge import Checkers
from lag_integrations.evaluation.tool_tasks.records import TaskRecord, TaskRecords
from lag_integrations.evaluation.tool_tasks.run import TaskRun
from lag_integrations.evaluation.tool_tasks.settings import ToolTaskSettings
from lag_integrations.evaluation.tool_tasks.tasks import Task
from lag_integrations.traces.trace import Trace

TOOL_ARMS = (
    "none",
    "text_last",
    "kv",
    "steps_text",
    "steps_kv",
    "lessons_text",
    "lessons_kv",
)
"""The arms that an agent with tools can have; see `evaluation.arms`."""


def tool_arm(name: str) -> Arm:
    """Return the arm of a name.

    Raises:
        EvaluationError: An agent with tools has no such arm.
    """
    if name not in TOOL_ARMS:
        raise EvaluationError(
            f"There is no arm {name!r} for tasks with tools; known are {', '.join(TOOL_ARMS)}."
        )
    return ARMS[name]


class ToolTaskEvaluation:
    """An evaluation in a folder; stopped at any point, it goes on where it was.

    Args:
        settings: What it is.
        seen: Tasks of which logs are made.
        unseen: Tasks to ask.
        checkers: What turns are judged by.
        engine: The model.
        embedder: What finds logs.
        out: Folder for records, traces and stores.
    """

    def __init__(
        self,
        settings: ToolTaskSettings,
        seen: Sequence[Task],
        unseen: Sequence[Task],
        checkers: Checkers,
        engine: Engine,
        embedder: Any,
        out: Path,
    ) -> None:
        self._settings = settings
        self._seen = seen
        self._unseen = unseen
        self._engine = engine
        self._embedder = embedder
        self._out = out
        self._agent = ToolAgent(engine, checkers, settings)
        self._records = TaskRecords(out / "records.jsonl")
        self._traces = out / "traces.jsonl"
        cut_to_lines(self._traces)

    def run(self, names: Sequence[str], progress: Progress) -> None:
        """Ask the unseen tasks with some arms.

        Raises:
            EvaluationError: There is no such arm.
        """
        arms = {name: tool_arm(name) for name in names}
        if self._settings.logs == "self" and any(arm.uses_logs for arm in arms.values()):
            self._ask("making logs", self._seen, {BASELINE: ARMS[BASELINE]}, {}, progress)
        if not self._due(self._unseen, arms):
            return
        with ExitStack() as stack:
            memories = self._memories(arms, stack, progress)
            self._ask("asking", self._unseen, arms, memories, progress)

    def _due(self, tasks: Sequence[Task], arms: Collection[str]) -> list[tuple[Task, list[str]]]:
        """Return the tasks that are to be asked, and with which arms.

        Tasks with the same tools come one after the other, all arms of each: then a model reads
        these once.
        """
        due = [
            (task, [name for name in arms if (name, task.id) not in self._records])
            for task in sorted(tasks, key=lambda task: list(task.owners))
        ]
        return [(task, names) for task, names in due if names]

    def _ask(
        self,
        what: str,
        tasks: Sequence[Task],
        arms: Mapping[str, Arm],
        memories: Mapping[bool, KVLogMemory],
        progress: Progress,
    ) -> None:
        due = self._due(tasks, arms)
        done, total = 0, sum(len(names) for _, names in due)
        for task, names in due:
            self._agent.read_tools(task)
            for name in names:
                progress(what, done, total)
                arm = arms[name]
                memory = memories[arm.uses_lessons] if arm.uses_logs else None
                run = self._agent.run(task, name, arm, memory)
                self._keep(run)
                self._records.add(TaskRecord.of(run, seen=task in self._seen))
                done += 1
        progress(what, done, total)

    def _memories(
        self, arms: Mapping[str, Arm], stack: ExitStack, progress: Progress
    ) -> dict[bool, KVLogMemory]:
        """Return the memories that arms need, by whether it is the one with lessons."""
        memories: dict[bool, KVLogMemory] = {}
        for of_lessons in (False, True):
            mine = [
                arm for arm in arms.values() if arm.uses_logs and arm.uses_lessons is of_lessons
            ]
            if not mine:
                continue
            # Others would be given the lessons, too.
            folder = self._out / ("lessons" if of_lessons else "store")
            memory = stack.enter_context(KVLogMemory(folder, embedder=self._embedder))
            if any(arm.uses_segments for arm in mine):
                memory.attach(self._engine)  # segments are made before the clock runs
            memory.add_many(self._logs())
            flush(memory, lambda done, total: progress("storing logs", done, total))
            if of_lessons:
                memory.learn(
                    self._engine,
                    progress=lambda done, total: progress("making lessons", done, total),
                )
                flush(memory)
            memories[of_lessons] = memory
        return memories

    def _logs(self) -> Iterator[Trace]:
        if self._settings.logs == "gold":
            for task in self._seen:
                yield from gold_traces(task)
        else:
            yield from self._kept()

    def _keep(self, run: TaskRun) -> None:
        """Write down the traces of a run; of one that is asked again, the last ones count."""
        with self._traces.open("a", encoding="utf-8") as file:
            file.writelines(trace.to_json() + "\n" for trace in run.traces())

    def _kept(self) -> Iterator[Trace]:
        """Yield what the model did without logs with the seen tasks."""
        wanted = {task.turn_id(turn) for task in self._seen for turn in range(len(task.asked))}
        kept: dict[str, Trace] = {}
        for line in self._traces.read_text("utf-8").split("\n")[:-1]:
            trace = Trace.from_json(line)
            id = str(trace.metadata["question_id"])
            if trace.metadata["arm"] == BASELINE and id in wanted and trace.has_response:
                kept[id] = trace
        yield from kept.values()

"""The paper's protocol: logs of the seen questions, then all questions with every arm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.agent_loop import Agent, Run
from lag_integrations.evaluation.arms import Arm, arm
from lag_integrations.evaluation.calculations import calculates
from lag_integrations.evaluation.documents import Documents
from lag_integrations.evaluation.gold import gold_trace
from lag_integrations.evaluation.questions import Dataset, Question, Stratum
from lag_integrations.evaluation.records import Record, Records, cut_to_lines
from lag_integrations.evaluation.scoring import same, scores
from lag_integrations.evaluation.settings import Settings
from lag_integrations.evaluation.storing import Progress, flush
from lag_integrations.evaluation.tags import untagged
from lag_integrations.memory.results import RecalledLog
from lag_integrations.store.embedder import Embedder
from lag_integrations.traces.fluency import repetition
from lag_integrations.traces.trace import Outcome, Trace


@dataclass(frozen=True)
class Shard:
    """One of several parts of an evaluation, for several machines.

    Attributes:
        number: Which, from 1.
        count: Of how many.
    """

    number: int = 1
    count: int = 1

    @property
    def name(self) -> str:
        """Its name among the files."""
        return f"{self.number}-of-{self.count}"

    def of(self, questions: Sequence[Question]) -> Sequence[Question]:
        """Return this part of the questions."""
        return questions[self.number - 1 :: self.count]


class Evaluation:
    """An evaluation in a folder; stopped at any point, it goes on where it was.

    Args:
        settings: What it is.
        dataset: The questions.
        engine: The model.
        embedder: What finds documents and logs.
        out: Folder for records, traces and stores.
        shard: The part to run.
        others: Another dataset, whose logs are stored instead.
        strata: The strata to ask; all by default.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        engine: Engine,
        embedder: Any,
        out: Path,
        shard: Shard | None = None,
        others: Dataset | None = None,
        strata: Sequence[Stratum] = (),
    ) -> None:
        self._settings = settings
        self._dataset = dataset
        self._engine = engine
        self._embedder = embedder
        self._out = out
        self._shard = shard or Shard()
        self._others = others
        self._strata = frozenset(strata)
        self._traces = out / f"traces-{self._shard.name}.jsonl"
        cut_to_lines(self._traces)
        self._records = Records(out / f"records-{self._shard.name}.jsonl")
        self._documents = Documents(dataset.documents, Embedder(embedder))

    def run(self, arms: Sequence[str], progress: Progress) -> None:
        """Ask all questions with some arms.

        Raises:
            EvaluationError: Logs are to be made of runs that are not there yet.
        """
        # Logs of the standard agent are there once it has run.
        chosen = {name: arm(name) for name in sorted(arms, key=lambda name: name != "none")}
        for name, one in chosen.items():
            if self._settings.online:
                self._run_online(name, one, progress)
            else:
                self._run(name, one, progress)

    def _run(self, name: str, one: Arm, progress: Progress) -> None:
        questions = self._shard.of(self._dataset.questions)
        todo = [
            question
            for question in questions
            if (name, question.id) not in self._records and self._asks(question)
        ]
        if not todo:
            return
        # Others would be given the lessons, too.
        folder = f"lessons-{self._shard.name}" if one.uses_lessons else f"store-{self._shard.name}"
        with self._memory(one, folder) as memory:
            if one.uses_logs:
                self._fill(memory, progress)
            if one.uses_lessons:
                self._learn(memory, progress)
            agent = Agent(self._engine, memory, one, self._documents, self._settings)
            seen = {question.id for question in self._dataset.seen}
            progress(name, 0, len(todo))
            for done, run in enumerate(agent.run_all(todo), 1):
                if self._settings.logs == "self" and name == "none" and run.question.id in seen:
                    self._keep(run)
                self._records.add(self._record(name, run, self._dataset))
                progress(name, done, len(todo))
        progress(name, len(todo), len(todo))

    def _run_online(self, name: str, one: Arm, progress: Progress) -> None:
        """Ask questions one after the other; each run is a log for the next."""
        questions = (*self._dataset.seen, *self._dataset.unseen)
        with self._memory(one, f"store-online-{name}") as memory:
            agent = Agent(self._engine, memory, one, self._documents, self._settings)
            for done, question in enumerate(questions):
                progress(name, done, len(questions))
                if (name, question.id) in self._records:
                    continue
                # A run that was killed before its record was written may have left its log.
                memory.delete(memory.store.ledger.having({"question_id": question.id}))
                run = agent.run(question)
                if trace := self._trace(run):
                    memory.add(trace)
                    flush(memory)
                    if one.uses_lessons:
                        self._learn(memory, lambda *_: None)
                before = Dataset(self._dataset.name, seen=questions[:done], unseen=(question,))
                self._records.add(self._record(name, run, before))
        progress(name, len(questions), len(questions))

    def _asks(self, question: Question) -> bool:
        return not self._strata or self._dataset.stratum(question) in self._strata

    def _memory(self, one: Arm, folder: str) -> KVLogMemory:
        outcomes: tuple[Outcome, ...] = ("success", "unknown")
        memory = KVLogMemory(
            self._out / folder,
            embedder=self._embedder,
            selection=one.selection,
            outcomes=outcomes if self._settings.only_correct else (*outcomes, "failure"),
        )
        if one.uses_segments:
            memory.attach(self._engine)  # segments are made before the clock runs
        return memory

    def _fill(self, memory: KVLogMemory, progress: Progress) -> None:
        """Store the logs; those that are there already stay."""
        memory.add_many(self._logs())
        flush(memory, lambda done, total: progress("storing logs", done, total))

    def _learn(self, memory: KVLogMemory, progress: Progress) -> None:
        """Have the model distil what it was given; lessons that are there already stay."""
        memory.learn(
            self._engine, progress=lambda done, total: progress("making lessons", done, total)
        )
        flush(memory)

    def _logs(self) -> Iterator[Trace]:
        source = self._others or self._dataset
        if source.logs:
            yield from source.logs
        elif self._settings.logs in ("gold", "other"):
            yield from (question.log or gold_trace(question) for question in source.seen)
        else:
            yield from self._kept()

    def _keep(self, run: Run) -> None:
        trace = self._trace(run)
        line = trace.to_json() if trace else json.dumps({"silent": run.question.id})
        with self._traces.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _kept(self) -> Iterator[Trace]:
        """Yield what the standard agent did with the seen questions, in whichever shard."""
        traces: dict[str, Trace | None] = {}
        for path in sorted(self._out.glob("traces-*.jsonl")):
            for line in path.read_text("utf-8").split("\n")[:-1]:
                if silent := json.loads(line).get("silent"):
                    traces[silent] = None
                else:
                    trace = Trace.from_json(line)
                    traces[str(trace.metadata["question_id"])] = trace
        missing = [question for question in self._dataset.seen if question.id not in traces]
        if missing:
            raise EvaluationError(
                f"{len(missing)} of {len(self._dataset.seen)} seen questions have no log yet. With "
                "--logs self, logs are what the arm `none` did: run it first, in all shards "
                "(--arms none), then the other arms."
            )
        yield from (trace for trace in traces.values() if trace)

    def _trace(self, run: Run) -> Trace | None:
        """Return the run's trace; None if the model said nothing."""
        if not any(response.strip() for response in run.responses):
            return None
        right, _ = scores(run.answer, run.question)
        return run.trace().model_copy(update={"outcome": "success" if right else "failure"})

    def _record(self, name: str, run: Run, dataset: Dataset) -> Record:
        right, best = scores(run.answer, run.question)
        old = run.question.old_answer
        return Record(
            arm=name,
            question_id=run.question.id,
            stratum="unseen" if self._others else dataset.stratum(run.question),
            answer=run.answer or "",
            response=run.responses[-1] if run.responses else "",
            answered_in=None if run.answer is None else len(run.responses),
            exact_match=right,
            f1=best,
            calculated=_calculated(run),
            repetition=repetition(untagged(run.responses[-1])) if run.responses else None,
            log_likelihood=run.log_likelihood,
            parroted=None if old is None else not right and same(run.answer, old, run.question),
            rounds=len(run.responses),
            seconds=run.seconds,
            time_to_first_token=run.time_to_first_token,
            computed_tokens=run.computed_tokens,
            injected_tokens=run.injected_tokens,
            generated_tokens=run.generated_tokens,
            stored_bytes=run.stored_bytes,
            logs=tuple(_source(log) for log in run.logs),
            scores=tuple(log.score for log in run.logs if log.score is not None),
            error=run.error,
        )


def _calculated(run: Run) -> bool | None:
    """Return whether a run wrote down the right calculation; None if no number was asked for."""
    if not run.question.numeric:
        return None
    written = "\n".join(run.responses)
    return any(calculates(written, gold) for gold in run.question.answers)


def _source(log: RecalledLog) -> str:
    """Return the id of the question that a log is of; else the log's own id."""
    return str(log.trace.metadata.get("question_id", log.id))

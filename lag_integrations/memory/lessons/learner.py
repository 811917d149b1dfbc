"""Making lessons: which groups of runs lack one, and one lesson of a group."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

from lag_integrations.errors import TraceRefusedError
from lag_integrations.memory.embedding_indexer import EmbeddingIndexer
from lag_integrations.memory.lessons.groups import Group, Run, grouped
from lag_integrations.memory.lessons.lesson import lesson_trace
from lag_integrations.memory.lessons.prompt import Reply, excerpts, prompt_of, read_reply
from lag_integrations.memory.lessons.teacher import Teacher
from lag_integrations.store.chunks import chunks
from lag_integrations.store.lesson_links import Basis
from lag_integrations.store.recency import SAME_TASK
from lag_integrations.store.store import LogStore
from lag_integrations.traces.owner import NOBODY, Owner
from lag_integrations.traces.reserved_metadata import PLACE
from lag_integrations.traces.trace import Outcome, Trace

logger = logging.getLogger(__name__)

MAX_TOKENS = 2_048
"""Tokens of a prompt for a lesson, by default."""
MAX_NEW_TOKENS = 160
"""Tokens of a lesson."""
_MOST_RUNS = 2_000
"""Runs without a lesson that are looked at: the last captured."""


@dataclass(frozen=True)
class LearnResult:
    """What `learn` did.

    Attributes:
        lessons: Ids of the lessons that it made.
        refused: Number of groups of runs of which the model made none that can be used.
        left: Number of groups that still lack a lesson, since `max_lessons` was reached.
    """

    lessons: tuple[str, ...] = ()
    refused: int = 0
    left: int = 0


@dataclass(frozen=True)
class Made:
    """What became of a group of runs.

    Attributes:
        key: Id of the log that was recorded; None if nothing was, since the runs were changed
            meanwhile, or since not even their tasks may be recorded.
        refused: Whether no lesson came of them that can be used.
    """

    key: str | None = None
    refused: bool = False


class Learner:
    """Makes the lessons of one namespace, one at a time.

    Args:
        store: The store.
        embeddings: Knows what similarities mean.
        outcomes: The outcomes of logs that are recalled.
        shared: Whether runs of several users may come together.
    """

    def __init__(
        self,
        store: LogStore,
        embeddings: EmbeddingIndexer,
        outcomes: Sequence[Outcome],
        *,
        shared: bool,
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._outcomes = outcomes
        self._shared = shared
        self._refused: set[frozenset[str]] = set()
        self._failed: set[frozenset[str]] = set()

    def due(self) -> list[Group]:
        """Return the groups that a lesson is to be made of; delete lessons that have become void.

        Raises:
            StoreError: The store fails, or can only be read.
        """
        self._store.database.require_writable()
        lessons = self._store.lessons.all()
        known = [key for lesson in lessons for key in lesson.sources]
        ids = self._store.lessons.candidates(self._outcomes, known, _MOST_RUNS)
        if not ids:
            return []
        least = self._embeddings.relevance.similarity_for(SAME_TASK)
        runs = [run for chunk in chunks(ids) for run in self._runs(chunk)]
        groups = grouped(runs, lessons, least)
        void = [group.lesson.id for group in groups if group.lesson and group.is_void]
        if void:
            self._store.delete(void)
        due = [group for group in groups if group.is_due and _name(group) not in self._refused]
        return sorted(due, key=lambda group: _name(group) in self._failed)

    def make(self, group: Group, teacher: Teacher, max_tokens: int, max_new_tokens: int) -> Made:
        """Have a lesson made of a group, and record it.

        Args:
            group: The runs.
            teacher: The model.
            max_tokens: Most tokens of the prompt.
            max_new_tokens: Most tokens of the lesson.

        Returns:
            What became of it.

        Raises:
            StoreError: The store fails.
            Exception: The model failed. Its group comes last from now on.
        """
        ids = [run.id for run in group.sources]
        bases, found = self._store.lessons.bases(ids), self._store.ledger.get(ids)
        allowed = self._store.lessons.candidates(self._outcomes, ids, limit=0)
        if set(ids) != set(found) or set(ids) != set(allowed):
            return Made()  # deleted, or withdrawn, since they were grouped
        readers = {self._whose(found[key], bases[key]) for key in ids}
        if len(readers) > 1:
            return Made()
        sources = {key: found[key] for key in ids}
        most = max_tokens if teacher.window is None else min(max_tokens, teacher.window)
        shown = excerpts(list(sources.values()), most, teacher.count)
        prompt = prompt_of(shown)
        try:
            answer = teacher.ask(prompt)
        except Exception:
            self._failed.add(_name(group))
            raise
        reply = read_reply(answer, prompt, max_new_tokens)
        owner = self._readers(sources[ids[0]], bases[ids[0]])
        add = partial(
            self._store.lessons.add,
            bases=bases,
            instead_of=group.lesson.id if group.lesson else None,
        )
        try:
            key = add(lesson_trace(sources, shown, reply, owner))
        except TraceRefusedError:
            reply = Reply(refused="screen= or redact= refused it")
            try:
                key = add(lesson_trace(sources, shown, reply, owner))
            except TraceRefusedError:  # of the very tasks: what is not recorded is remembered
                self._refused.add(_name(group))
                logger.warning(
                    "screen= or redact= lets nothing be recorded that was learned of %d runs, not "
                    "even their tasks and the metadata lag_lesson_of.",
                    len(ids),
                )
                return Made(refused=True)
        return Made(key, refused=key is not None and not reply.lesson)

    def _runs(self, ids: Sequence[str]) -> list[Run]:
        traces, bases = self._store.ledger.get(ids), self._store.lessons.bases(ids)
        times, tasks = self._store.ledger.captured_at(ids), self._store.embeddings.tasks(ids)
        return [
            Run(
                key,
                tasks[key],
                self._whose(trace, bases[key]),
                times[key],
                bases[key].failed,
            )
            for key, trace in traces.items()
            if key in bases and key in times and key in tasks and _is_run(trace)
        ]

    def _whose(self, trace: Trace, basis: Basis) -> Hashable:
        """Return what is equal for runs that may come together."""
        return self._readers(trace, basis), basis.is_restricted

    def _readers(self, trace: Trace, basis: Basis) -> Owner:
        """Return whose a run is, as far as lessons keep that apart."""
        if self._shared:
            return NOBODY
        owner = Owner.of(trace.metadata)
        if owner.user is not None or not basis.is_restricted:
            return Owner(owner.user)
        return owner


def _name(group: Group) -> frozenset[str]:
    return frozenset(run.id for run in group.sources)


def _is_run(trace: Trace) -> bool:
    """Return whether a trace is a run that can teach: no item of a store."""
    return PLACE not in trace.metadata and bool(trace.task.strip())

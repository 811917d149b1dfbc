"""What a memory finds for a task, and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lag_integrations.store.search_hit import SearchHit
from lag_integrations.store.utility import RunOutcomes
from lag_integrations.traces.particulars import other_case
from lag_integrations.traces.search_keys import SearchKey, search_keys
from lag_integrations.traces.steps import answer_step, step_reference, step_text
from lag_integrations.traces.trace import Trace


@dataclass(frozen=True)
class RecalledLog:
    """A log that fits a task.

    Attributes:
        id: Id of the log.
        trace: What the run said and did.
        score: Cosine similarity of the query and the nearest of the log's search keys; None if it
            was asked for by its id.
        key: That search key.
        relevance: The probability that it fits the query, as measured for the embedder. Logs come
            in this order, weighted by how judged runs ended that were given them.
        step: The one step of the run that is meant, counted from 0; None if it is the run.
        without_answer: Whether only what led to the last response is meant; see `for_task`.
    """

    id: str
    trace: Trace
    score: float | None
    key: SearchKey | None = None
    relevance: float | None = None
    step: int | None = None
    without_answer: bool = False

    @property
    def reference(self) -> str:
        """By what it is asked for again: the log's id, and the step if one is meant."""
        return self.id if self.step is None else step_reference(self.id, self.step)

    @property
    def text(self) -> str:
        """What a model reads of it as text: the last response, the step, or what led to it."""
        if self.without_answer:
            before = range(answer_step(self.trace))
            return "\n".join(step_text(self.trace, step) for step in before)
        if self.step is None:
            return self.trace.last_response
        return step_text(self.trace, self.step)

    def for_task(self, task: str) -> RecalledLog:
        """Return what of it is given to a model for a task.

        Of a run of several steps on another case (`particulars.other_case`), that is what led to
        its answer, without the answer, which small models repeat although it does not hold
        (docs/evaluation.md).
        """
        if self.step is not None or answer_step(self.trace) == 0:
            return self
        return replace(self, without_answer=other_case(task, self.trace.task))

    def as_step(self) -> RecalledLog:
        """Return the one step of it that is nearest to what was searched for."""
        return self if self.key is None else replace(self, step=self.key.step)

    @classmethod
    def of(cls, found: SearchHit, trace: Trace) -> RecalledLog:
        """Join what a search found with its trace."""
        key = search_keys(trace)[found.key]
        return cls(found.id, trace, round(found.score, 6), key, round(found.relevance, 6))


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        logs: The logs that are recalled, the most relevant first.
        nearest_miss: Where nothing is recalled, the most relevant log below the floor.
    """

    logs: list[RecalledLog] = field(default_factory=list)
    nearest_miss: RecalledLog | None = None


@dataclass(frozen=True)
class Candidate:
    """A log that was looked at for a task.

    Attributes:
        log: The log.
        words: Rare words that it shares with the query, each counted as far as it is rare.
        runs: How the judged runs ended into which it was recalled, if there are any.
        missed: Why it is not recalled; empty if it is.
    """

    log: RecalledLog
    words: float
    runs: RunOutcomes | None
    missed: tuple[str, ...]

    @property
    def is_recalled(self) -> bool:
        """Whether it is recalled."""
        return not self.missed

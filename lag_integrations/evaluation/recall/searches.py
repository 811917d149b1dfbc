"""Ways to search logs for a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lag_integrations import KVLogMemory
from lag_integrations.evaluation.recall.queries import RecallQuery
from lag_integrations.memory.results import RecalledLog
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.floor import Floor
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import Query, SearchHit
from lag_integrations.traces.conversation import follow_up
from lag_integrations.traces.trace import Trace

NEAREST = 3
"""Logs that are looked at, whatever the floor."""


@dataclass(frozen=True)
class Searched:
    """What was found for a query.

    Attributes:
        nearest: Ids of the nearest logs, whatever the floor; `NEAREST` at most.
        given: Ids of the logs that are recalled.
    """

    nearest: tuple[str, ...]
    given: tuple[str, ...]


class Search(Protocol):
    """A way to search logs."""

    def __call__(self, query: RecallQuery, /) -> Searched:
        """Return what it finds for a query."""


@dataclass(frozen=True)
class MemorySearch:
    """What a memory recalls.

    Nearest to a follow-up that recalls nothing alone is what is nearest to it behind what was said
    before.

    Attributes:
        memory: The memory.
        floor: What a log has to reach.
        k: Most logs to recall.
        with_before: Whether what was said before a query is told.
    """

    memory: KVLogMemory
    floor: Floor
    k: int = NEAREST
    with_before: bool = True

    def __call__(self, query: RecallQuery, /) -> Searched:
        """Return what the memory recalls, and what is nearest."""
        recall = partial(
            self.memory.recall,
            k=self.k,
            min_relevance=self.floor.relevance,
            min_score=self.floor.score,
            count=False,
        )
        before = query.before if self.with_before else None
        text, given = query.query, recall(query.query)
        if before and not given:
            text, given = follow_up(text, before), recall(query.query, before=before)
        nearest = self.memory.recall(text, k=NEAREST, min_relevance=0.0, count=False)
        return Searched(_ids(nearest), _ids(given))


@dataclass(frozen=True)
class KeySearch:
    """Every log by its search keys, with a floor and a relevance of one's own.

    Attributes:
        memory: The memory whose logs are searched.
        embedder: Its embedder.
        relevance: What similarities mean.
        floor: What a log has to reach.
    """

    memory: KVLogMemory
    embedder: Embedder
    relevance: Relevance
    floor: Floor

    def __call__(self, query: RecallQuery, /) -> Searched:
        """Return what is found by the keys; what was said before does not count."""
        ledger = self.memory.store.ledger
        found = self.memory.store.search(
            Query(query.query, self.embedder.embed_query(query.query)),
            self.relevance,
            logs=NEAREST,
            least_similarity=-1.0,
            allowed=ledger.recallable(self.memory.outcomes, None),
            filtered=False,
        )
        return _searched(found, self.floor)


class VectorSearch:
    """Every log by one vector, of its task and last response: how logs were found before.

    Args:
        logs: The logs by their ids.
        embedder: Embeds them.
        floor: What a log has to reach.
    """

    def __init__(self, logs: Mapping[str, Trace], embedder: Embedder, floor: Floor) -> None:
        self._ids = list(logs)
        self._vectors = embedder.embed(
            [f"{log.task}\n{log.last_response}" for log in logs.values()]
        )
        self._embedder = embedder
        self._floor = floor

    def __call__(self, query: RecallQuery, /) -> Searched:
        """Return what is found by the vector; what was said before does not count."""
        scores = self._vectors @ self._embedder.embed_query(query.query)
        found = [
            SearchHit(log_id, score, 0, 0.0, 0.0)
            for log_id, score in zip(self._ids, scores.tolist(), strict=True)
        ]
        return _searched(sorted(found, key=lambda one: one.rank), self._floor)


def _searched(found: Sequence[SearchHit], floor: Floor) -> Searched:
    nearest = found[:NEAREST]
    return Searched(
        tuple(one.id for one in nearest), tuple(one.id for one in nearest if floor.reached_by(one))
    )


def _ids(logs: Sequence[RecalledLog]) -> tuple[str, ...]:
    return tuple(log.id for log in logs)

"""The search of a memory: what fits a task, in which order, and why the rest does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import ColumnElement

from lag_integrations.memory.embedding_indexer import EmbeddingIndexer
from lag_integrations.memory.results import Candidate, RecalledLog, SearchResult
from lag_integrations.store.diversity import most_diverse
from lag_integrations.store.filters import Where
from lag_integrations.store.floor import Floor
from lag_integrations.store.recency import newest_first, newest_of_each_task
from lag_integrations.store.reranker import Reranker
from lag_integrations.store.search_hit import SearchHit
from lag_integrations.store.store import LogStore
from lag_integrations.store.utility import most_useful
from lag_integrations.traces.conversation import follow_up
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.search_keys import task_identity
from lag_integrations.traces.trace import Outcome, Trace

_FETCH = 5
"""Candidates a log, from which diverse ones are chosen."""
_FOLLOW_UP = 0.7
"""Least relevance of a log for a message behind the one before it. Half of these are no follow-ups
but new subjects; see docs/recall.md."""


@dataclass(frozen=True)
class _Fitting:
    """What was found by one text.

    Attributes:
        found: All that was looked at, best first.
        near: What is near enough.
        kept: What of that is not left out, in the order in which it is given.
    """

    found: list[SearchHit]
    near: list[SearchHit]
    kept: list[RecalledLog]

    @property
    def missed(self) -> list[SearchHit]:
        """What is not near enough, best first. What is, but is left out, has not been missed."""
        near = {one.id for one in self.near}
        return [one for one in self.found if one.id not in near]

    def or_else(self, other: _Fitting) -> _Fitting:
        """Return what another text found instead, where this one found nothing to keep."""
        found = sorted([*self.found, *other.found], key=lambda one: one.rank)
        return _Fitting(found, [*self.near, *other.near], other.kept)


class Searcher:
    """Searches the logs of one namespace.

    Args:
        store: The logs.
        deriver: Embeds queries, and knows what similarities mean.
        reranker: Orders what reaches the floor, if there is one.
    """

    def __init__(
        self, store: LogStore, embeddings: EmbeddingIndexer, reranker: Reranker | None = None
    ) -> None:
        self._store = store
        self._embeddings = embeddings
        self._reranker = reranker

    def search(
        self,
        query: str,
        *,
        before: str | None,
        k: int,
        floor: Floor,
        outcomes: Sequence[Outcome],
        where: Where | None,
        diversity: float,
        newest_only: bool,
        skip: Callable[[Trace], bool] | None,
        owner: Owner | None,
    ) -> SearchResult:
        """Return what fits a query, or else the nearest miss; see `KVLogMemory.recall`."""
        wanted = k * _FETCH if diversity or self._reranker is not None else k
        allowed = self._store.ledger.recallable(outcomes, where, owner)
        look = partial(self._look, floor=floor, allowed=allowed, filtered=where is not None)
        fitting = partial(self._fitting, wanted=wanted, newest_only=newest_only, skip=skip)
        fits = fitting(query, partial(look, query), floor.reached_by)
        if not fits.kept and before and before.strip():
            asked, said = follow_up(query, before), before

            def behind(logs: int) -> list[SearchHit]:
                # Else each new subject would recall what was recalled for the one before.
                earlier = {one.id: one.relevance for one in look(said, logs)}
                both = look(asked, logs)
                return [one for one in both if one.relevance >= earlier.get(one.id, 0.0)]

            def is_sure(one: SearchHit) -> bool:
                return floor.reached_by(one) and one.relevance >= _FOLLOW_UP

            fits = fits.or_else(fitting(asked, behind, is_sure))
        if not fits.kept:
            missed = self._with_traces(fits.missed[:1])
            return SearchResult(nearest_miss=missed[0] if missed else None)
        if diversity:
            return SearchResult(self._most_diverse(fits.near, fits.kept[:wanted], k, diversity))
        return SearchResult(fits.kept[:k])

    def _fitting(
        self,
        query: str,
        look: Callable[[int], list[SearchHit]],
        is_near: Callable[[SearchHit], bool],
        *,
        wanted: int,
        newest_only: bool,
        skip: Callable[[Trace], bool] | None,
    ) -> _Fitting:
        """Look for as many logs as are wanted, and further where some are left out."""
        logs = wanted
        traces: dict[str, Trace] = {}
        while True:
            found = look(logs)
            near = [one for one in found if is_near(one)]
            runs = self._store.ledger.run_outcomes([one.id for one in near])
            if runs and logs < wanted * _FETCH:
                logs = wanted * _FETCH  # what is less relevant may have been of more use
                continue
            useful = most_useful(near, runs)
            ordered, kept = self._reranked(query, useful, self._with_traces(useful, traces))
            if newest_only:
                kept = self._newest(ordered, kept)
            if skip is not None:
                kept = [log for log in kept if not skip(log.trace)]
            if len(kept) >= wanted or len(kept) == len(near) or len(near) < logs:
                return _Fitting(found, near, kept)
            # Others take the places of those that are left out.
            logs = max(2 * logs, len(near) + 1)

    def explain(
        self,
        query: str,
        *,
        k: int,
        floor: Floor,
        outcomes: Sequence[Outcome],
        where: Where | None,
        limit: int,
        owner: Owner | None,
    ) -> list[Candidate]:
        """Return what is near to a query, and why it is or is not recalled."""
        ledger = self._store.ledger
        conditions = ledger.conditions(outcomes, where, owner)
        found = self._look(
            query, limit, floor=Floor(0.0), allowed=ledger.mine_by_id, filtered=False
        )[:limit]
        ids = [one.id for one in found]
        lacking = {
            reason: set(ids) - ledger.filter_ids(ids, condition)
            for reason, condition in conditions.items()
        }
        by_id = {one.id: one for one in found}
        fit = [
            one
            for one in found
            if floor.reached_by(one) and not any(one.id in gone for gone in lacking.values())
        ]
        runs = ledger.run_outcomes(ids)
        useful = most_useful(found, runs)
        lacking["runs that are given it fail"] = set(ids) - {one.id for one in useful}
        fit = [one for one in useful if one in fit]
        fit, given = self._reranked(query, fit, self._with_traces(fit))
        given = self._newest(fit, given)
        lacking["there is a newer log of the same task"] = {one.id for one in fit} - {
            log.id for log in given
        }
        lacking[f"{k} logs fit better"] = {log.id for log in given[k:]}
        candidates = []
        for log in self._with_traces(found):
            one = by_id[log.id]
            missed = [reason for reason, without in lacking.items() if one.id in without]
            if not floor.reached_by(one):
                missed.append(f"it is below the floor: {floor}")
            candidates.append(Candidate(log, one.words, runs.get(one.id), tuple(missed)))
        return candidates

    def _look(
        self,
        query: str,
        logs: int,
        *,
        floor: Floor,
        allowed: ColumnElement[bool],
        filtered: bool,
    ) -> list[SearchHit]:
        relevance = self._embeddings.relevance
        return self._store.search(
            self._embeddings.embed_query(query),
            relevance,
            logs=logs,
            # What is far below is of interest only to say what was nearest.
            least_similarity=floor.least_similarity(relevance) if filtered else -1.0,
            allowed=allowed,
            filtered=filtered,
        )

    def _reranked(
        self, query: str, found: list[SearchHit], logs: list[RecalledLog]
    ) -> tuple[list[SearchHit], list[RecalledLog]]:
        """Return both in the reranker's order, if there is one."""
        if self._reranker is None:
            return found, logs
        texts = [f"{log.trace.task}\n{log.trace.last_response}" for log in logs]
        ordered = [logs[place] for place in self._reranker.order(query, texts)]
        by_id = {one.id: one for one in found}
        return [by_id[log.id] for log in ordered], ordered

    def _newest(self, near: Sequence[SearchHit], logs: Sequence[RecalledLog]) -> list[RecalledLog]:
        """Keep the newest log of each task, and put newer ones first where tasks are alike."""
        if len(logs) < 2:
            return list(logs)
        by_id = {log.id: log for log in logs}
        times = self._store.ledger.captured_at(list(by_id))
        names = {log.id: task_identity(log.trace) or log.id for log in logs}
        # First of all, since a task may come daily.
        found = newest_of_each_task([one for one in near if one.id in by_id], names, times)
        # A turn of a conversation is alike to the one before, of which its task speaks, too.
        alone = [one.id for one in found if not by_id[one.id].trace.earlier and one.id in times]
        tasks, relevance = self._store.embeddings.tasks(alone), self._embeddings.relevance
        return [by_id[one.id] for one in newest_first(found, tasks, times, relevance)]

    def _most_diverse(
        self, near: Sequence[SearchHit], logs: Sequence[RecalledLog], k: int, diversity: float
    ) -> list[RecalledLog]:
        by_id, found = {log.id: log for log in logs}, {one.id: one for one in near}
        tasks = self._store.embeddings.tasks(list(by_id))
        candidates = [found[log_id] for log_id in by_id]
        return [by_id[one.id] for one in most_diverse(candidates, tasks, k=k, diversity=diversity)]

    def _with_traces(
        self, found: Sequence[SearchHit], traces: dict[str, Trace] | None = None
    ) -> list[RecalledLog]:
        """Add the traces from the ledger, which knows what was deleted.

        Two users' runs may have said the same: once is enough.

        Args:
            found: What was found.
            traces: Those that were read before, to which the others are added.
        """
        traces = {} if traces is None else traces
        traces |= self._store.ledger.get([one.id for one in found if one.id not in traces])
        kept: dict[str, RecalledLog] = {}
        for one in found:
            if one.id in traces:
                trace = traces[one.id]
                kept.setdefault(trace.unscoped_hash, RecalledLog.of(one, trace))
        return list(kept.values())

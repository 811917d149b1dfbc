"""Recall: what fits a task, and why the rest does not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from lag_integrations.memory.base import MemoryBase
from lag_integrations.memory.results import Candidate, RecalledLog, SearchResult
from lag_integrations.memory.setting_checks import check_number, check_outcomes
from lag_integrations.store.filters import Where
from lag_integrations.store.floor import Floor
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.provenance import UnjudgedDocuments
from lag_integrations.traces.steps import parse_reference, steps_of
from lag_integrations.traces.trace import Outcome, Trace


class RecallMixin(MemoryBase):
    """Finds logs."""

    def recall(
        self,
        query: str,
        *,
        before: str | None = None,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        diversity: float | None = None,
        newest_only: bool = False,
        skip: Callable[[Trace], bool] | None = None,
        steps: bool = False,
        known: Collection[str] = (),
        count: bool = True,
        user: str | None = None,
        thread: str | None = None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> list[RecalledLog]:
        """Return the logs that fit a query, the best first.

        Args:
            query: The new task.
            before: What the user said before it. Where the task alone recalls nothing, it is
                searched for behind that, since "And how much does it cost?" says too little; what
                fits the message before better than both is left out.
            k: Most logs to return; the memory's own by default.
            min_relevance: Least probability that a log fits; the memory's own by default.
            min_score: Least cosine similarity instead.
            where: Only logs with such metadata: ``{"project": "x", "year": {"$gte": 2025}}``, with
                ``$eq $ne $gt $gte $lt $lte $in $nin``, ``{"$and": […]}`` and ``{"$or": […]}``. Of a
                list, one item has to fit. ``$ne`` and ``$nin`` hold where the key is missing, too.
            outcomes: Only logs with these outcomes.
            diversity: How much the logs shall differ from each other; the memory's own by default.
            newest_only: Of logs of one task only the newest; and newer ones first where tasks are
                alike. So models and agents are given them.
            skip: Says whether a log is left out; the next one takes its place.
            steps: Whether of each log only the step is meant that is nearest to the query, with
                what came of it: what an agent did when it stood where the new one stands.
            known: References (`RecalledLog.reference`) of what is not to be found again; others
                take their places.
            count: Whether this counts as a use of the logs, which keeps them longer.
            user: Whose run asks: unjudged runs that read documents are its users' only. What the
                filter says of ``user_id`` and ``thread_id`` goes before.
            thread: The thread of that run.
            unjudged_documents: Who is given such logs.

        Raises:
            StoreError: The filter is malformed, or the store fails.
            SettingsError: There is no outcome, or one that does not exist; or a number is out of
                its range.
        """
        return self.search(
            query,
            before=before,
            k=k,
            min_relevance=min_relevance,
            min_score=min_score,
            where=where,
            outcomes=outcomes,
            diversity=diversity,
            newest_only=newest_only,
            skip=skip,
            steps=steps,
            known=known,
            count=count,
            user=user,
            thread=thread,
            unjudged_documents=unjudged_documents,
        ).logs

    def search(
        self,
        query: str,
        *,
        before: str | None = None,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        diversity: float | None = None,
        newest_only: bool = False,
        skip: Callable[[Trace], bool] | None = None,
        steps: bool = False,
        known: Collection[str] = (),
        count: bool = True,
        user: str | None = None,
        thread: str | None = None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> SearchResult:
        """Search as `recall` does; with the nearest miss where nothing is recalled."""
        self._check_open()
        for name, value, least in (
            ("min_relevance", min_relevance, 0),
            ("min_score", min_score, -1),
            ("diversity", diversity, 0),
        ):
            if value is not None:
                check_number(name, value, least, 1)
        k = self.k if k is None else k
        if k < 1 or not query.strip():
            return SearchResult()
        found = self._searcher.search(
            query,
            before=before,
            k=k + len(known),
            floor=self._floor(min_relevance, min_score),
            outcomes=self.outcomes if outcomes is None else check_outcomes(outcomes),
            where=where,
            diversity=self.diversity if diversity is None else diversity,
            newest_only=newest_only,
            skip=skip,
            owner=self._owner(user, thread, unjudged_documents),
        )
        logs = [log.as_step() if steps else log for log in found.logs]
        logs = [log for log in logs if log.reference not in known][:k]
        if count and logs:
            self.count_uses([log.id for log in logs])
        return replace(found, logs=logs)

    def count_uses(self, log_ids: Collection[str]) -> None:
        """Count logs as used, which keeps them longer; for a search that does not (`count`)."""
        if self.usage.add(log_ids):
            self._worker.notify()

    def explain(
        self,
        query: str,
        *,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        limit: int = 10,
        user: str | None = None,
        thread: str | None = None,
    ) -> list[Candidate]:
        """Return the logs nearest to a query, and why each is or is not recalled.

        Args:
            query: As for `recall`, as for all that follow but `limit`.
            k: Most logs.
            min_relevance: Least probability.
            min_score: Least similarity.
            where: The filter.
            outcomes: The outcomes.
            limit: Most logs to return.
            user: Whose run asks.
            thread: Its thread.

        Raises:
            StoreError: As for `recall`.
        """
        self._check_open()
        if not query.strip():
            return []
        return self._searcher.explain(
            query,
            k=self.k if k is None else k,
            floor=self._floor(min_relevance, min_score),
            outcomes=self.outcomes if outcomes is None else check_outcomes(outcomes),
            where=where,
            limit=limit,
            owner=self._owner(user, thread),
        )

    def _owner(
        self,
        user: str | None,
        thread: str | None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> Owner | None:
        """Return who asks; None for one who is given all."""
        if (unjudged_documents or self.unjudged_documents) == "any":
            return None
        return Owner(user, thread)

    def _floor(self, min_relevance: float | None, min_score: float | None) -> Floor:
        """Return a call's floor; the memory's, if it says nothing."""
        if min_relevance is None and min_score is None:
            return Floor(self.min_relevance, self.min_score)
        return Floor(self.min_relevance if min_relevance is None else min_relevance, min_score)

    def get(self, log_ids: str | Iterable[str]) -> list[RecalledLog]:
        """Return logs by their ids, in the order asked for; those that do not exist are left out.

        Args:
            log_ids: The ids; or the references of steps (`RecalledLog.reference`).

        Raises:
            StoreError: The store fails.
        """
        self._check_open()
        asked = [log_ids] if isinstance(log_ids, str) else list(dict.fromkeys(log_ids))
        references = [parse_reference(one) for one in asked]
        traces = self.store.ledger.get([log_id for log_id, _ in references])
        return [
            RecalledLog(log_id, traces[log_id], None, step=step)
            for log_id, step in references
            if log_id in traces and (step is None or step < len(steps_of(traces[log_id])))
        ]

"""Order by recency: of logs about the same task, the newest comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lag_integrations.store.embedder import Vectors
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import SearchHit

SAME_TASK = 0.2
"""Least relevance of one task for another, without a common word, for both to be taken for the
same: for all-MiniLM-L6-v2, a similarity of 0.6."""
_RELEVANCE_MARGIN = 0.2
"""By how much less relevant to the query the newer log may be."""


def newest_of_each_task(
    found: Sequence[SearchHit], tasks: Mapping[str, str], captured_at: Mapping[str, float]
) -> list[SearchHit]:
    """Keep the newest log of each task, in the place of the best that it may come before.

    Args:
        found: Logs that fit a query, best first.
        tasks: What tells tasks apart, by log.
        captured_at: When each was captured, in Unix seconds.
    """
    newest: dict[str, SearchHit] = {}
    for one in sorted(found, key=lambda one: captured_at.get(one.id, 0.0)):
        newest[tasks[one.id]] = one
    kept: dict[str, SearchHit] = {}
    for one in found:
        new = newest[tasks[one.id]]
        if new is one or _may_come_before(new, one):
            kept.setdefault(new.id, new)
    return list(kept.values())


def newest_first(
    found: Sequence[SearchHit],
    tasks: Mapping[str, Vectors],
    captured_at: Mapping[str, float],
    relevance: Relevance,
) -> list[SearchHit]:
    """Move logs before older ones with a similar task.

    Similar tasks may be about two things ("the capital of Peru", "… of Chile"). So a newer log only
    comes first if it has as many of the query's rare words (docs/recall.md).

    Args:
        found: Logs that fit a query, best first.
        tasks: The embedding of each task, fp32 ``[dimension]``, of norm 1. Logs without one stay
            where they are.
        captured_at: When each was captured, in Unix seconds.
        relevance: The relevance model of the embedder.
    """

    def is_newer(new: SearchHit, old: SearchHit) -> bool:
        return (
            old.id in tasks
            and captured_at[new.id] > captured_at[old.id]
            and _may_come_before(new, old)
            and relevance.of(float(tasks[new.id] @ tasks[old.id]), 0.0) >= SAME_TASK
        )

    ordered: list[SearchHit] = []
    for one in found:
        older = (
            place for place, other in enumerate(ordered) if one.id in tasks and is_newer(one, other)
        )
        ordered.insert(next(older, len(ordered)), one)
    return ordered


def _may_come_before(new: SearchHit, old: SearchHit) -> bool:
    """Return whether a newer log fits the query about as well as an older one."""
    return new.words >= old.words and new.relevance >= old.relevance - _RELEVANCE_MARGIN

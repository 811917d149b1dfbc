"""Of logs that say different things of one matter, the newest comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lag_integrations.store.embedder import Vectors
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import SearchHit

_ALIKE = 0.2
"""Relevance of one task for the other, without a word in common, from which both are taken for
alike: for all-MiniLM-L6-v2, a similarity of 0.6."""
_AS_RELEVANT = 0.2
"""By how much less relevant to the query the newer one may be."""


def newest_first(
    found: Sequence[SearchHit],
    tasks: Mapping[str, Vectors],
    captured_at: Mapping[str, float],
    relevance: Relevance,
) -> list[SearchHit]:
    """Put logs before older ones of a task that is alike.

    Tasks that are alike may be about two things ("the capital of Peru", "… of Chile"). So a newer
    log only comes first if it holds as many of the query's rare words (docs/recall.md).

    Args:
        found: Logs that fit a query, best first.
        tasks: The embedding of the task of each, fp32 ``[dimension]``, of norm 1. Logs without one
            stay where they are.
        captured_at: When each was captured, in Unix seconds.
        relevance: What similarities mean.
    """

    def is_newer(new: SearchHit, old: SearchHit) -> bool:
        return (
            old.id in tasks
            and captured_at[new.id] > captured_at[old.id]
            and new.words >= old.words
            and new.relevance >= old.relevance - _AS_RELEVANT
            and relevance.of(float(tasks[new.id] @ tasks[old.id]), 0.0) >= _ALIKE
        )

    ordered: list[SearchHit] = []
    for one in found:
        older = (
            place for place, other in enumerate(ordered) if one.id in tasks and is_newer(one, other)
        )
        ordered.insert(next(older, len(ordered)), one)
    return ordered

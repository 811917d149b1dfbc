"""Maximal marginal relevance, so that near-duplicates do not fill a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lag_integrations.errors import StoreError
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.search_hit import SearchHit


def most_diverse(
    candidates: Sequence[SearchHit],
    vectors: Mapping[str, Vectors],
    *,
    k: int,
    diversity: float,
) -> list[SearchHit]:
    """Choose k candidates that are near to the query and far from each other.

    Carbonell and Goldstein (1998), with ``lambda = 1 - diversity``.

    Args:
        candidates: Logs that were found, best first. Their order counts, whoever made it: the first
            gets the highest of their relevances, and so on.
        vectors: An embedding of each, fp32 ``[dimension]``, of norm 1. Logs without one are left
            out.
        k: Most logs to choose.
        diversity: From 0 to 1.

    Returns:
        The chosen logs, in their order.

    Raises:
        StoreError: ``diversity`` is out of its range.
    """
    if not 0 <= diversity <= 1:
        raise StoreError(f"diversity is {diversity}; give a number from 0 to 1.")
    candidates = [found for found in candidates if found.id in vectors]
    left = [found.id for found in candidates]
    by_relevance = sorted((found.relevance for found in candidates), reverse=True)
    worth = dict(zip(left, by_relevance, strict=True))
    alike = dict.fromkeys(left, -1.0)  # similarity to the nearest that was chosen
    chosen: set[str] = set()
    while left and len(chosen) < k:
        weight = diversity if chosen else 0.0
        best = max(left, key=lambda one: (1 - weight) * worth[one] - weight * alike[one])
        left.remove(best)
        chosen.add(best)
        for one in left:
            alike[one] = max(alike[one], float(vectors[one] @ vectors[best]))
    return [found for found in candidates if found.id in chosen]

"""Maximal marginal relevance: near-duplicates must not take every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lag_integrations.errors import StoreError
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.found import Found


def most_diverse(
    candidates: Sequence[Found],
    vectors: Mapping[str, Vectors],
    *,
    k: int,
    diversity: float,
) -> list[Found]:
    """Choose k candidates that are near to the query and far from each other.

    Carbonell and Goldstein (1998), with ``lambda = 1 - diversity``.

    Args:
        candidates: Logs that were found, best first.
        vectors: An embedding of each, fp32 ``[dimension]``, of norm 1; logs without are left out.
        k: Most to choose.
        diversity: From 0 to 1.

    Raises:
        StoreError: ``diversity`` is out of its range.
    """
    if not 0 <= diversity <= 1:
        raise StoreError(f"diversity is {diversity}; give a number from 0 to 1.")
    left = [found for found in candidates if found.id in vectors]
    chosen: list[Found] = []
    alike = dict.fromkeys(vectors, -1.0)  # similarity to the nearest that was chosen
    while left and len(chosen) < k:
        weight = diversity if chosen else 0.0
        best = max(left, key=lambda found: (1 - weight) * found.score - weight * alike[found.id])
        left.remove(best)
        chosen.append(best)
        for found in left:
            alike[found.id] = max(alike[found.id], float(vectors[found.id] @ vectors[best.id]))
    return sorted(chosen, key=lambda found: found.rank)

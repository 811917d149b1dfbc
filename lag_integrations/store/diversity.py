"""Maximal marginal relevance: near-duplicates must not take every place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lag_integrations.errors import StoreError
from lag_integrations.store.embedder import Vectors


def most_diverse(
    candidates: Sequence[tuple[str, float]],
    ids: Sequence[str],
    vectors: Vectors,
    *,
    k: int,
    diversity: float,
) -> list[tuple[str, float]]:
    """Choose k candidates that are near to the query and far from each other.

    Carbonell and Goldstein (1998), with ``lambda = 1 - diversity``.

    Args:
        candidates: Ids and cosine similarities to the query, best first.
        ids: Ids of the vectors.
        vectors: fp32 ``[candidates, dimension]``, of norm 1.
        k: Most to choose.
        diversity: From 0 to 1.

    Raises:
        StoreError: ``diversity`` is out of its range.
    """
    if not 0 <= diversity <= 1:
        raise StoreError(f"diversity is {diversity}; give a number from 0 to 1.")
    rows = {key: row for row, key in enumerate(ids)}
    left = [(key, score) for key, score in candidates if key in rows]
    chosen: list[tuple[str, float]] = []
    alike = np.full(len(ids), -1.0, dtype=np.float32)  # to the nearest that was chosen
    while left and len(chosen) < k:
        weight = diversity if chosen else 0.0
        best = max(
            left, key=lambda item: (1 - weight) * item[1] - weight * float(alike[rows[item[0]]])
        )
        left.remove(best)
        chosen.append(best)
        alike = np.maximum(alike, vectors @ vectors[rows[best[0]]])
    return sorted(chosen, key=lambda item: -item[1])

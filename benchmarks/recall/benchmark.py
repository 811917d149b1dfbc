"""The ways in which logs can be found, on one store: each ingredient on and off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from benchmarks.recall.cases import Cases
from lag_integrations import KVLogMemory
from lag_integrations.evaluation.recall.figures import Result
from lag_integrations.evaluation.recall.searches import (
    KeySearch,
    MemorySearch,
    Search,
    VectorSearch,
)
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.floor import MIN_RELEVANCE, Floor
from lag_integrations.store.relevance.measure import measure
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.traces.trace import Outcome, Trace

ONE_VECTOR = "one vector, cosine 0.5"
SHIPPED = "as shipped"

_COSINE = Floor(0.0, 0.5)
_RELEVANCE = Floor(MIN_RELEVANCE)
_BY_SIMILARITY = Relevance(0.0, 1.0, 0.0)
"""Leaves logs in the order of similarity."""


def compare(
    cases: Cases,
    folder: Path,
    source: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Result]]:
    """Store the logs and ask the queries in every way, by the names of the ways.

    Args:
        cases: Logs and queries.
        folder: Where the store is made.
        source: The embedder, as `Embedder` takes it.
        progress: Called with the number of queries that were asked, and of all.
    """
    embedder = Embedder(source)
    # How a run ended is not the question here.
    with KVLogMemory(folder, embedder=source, outcomes=get_args(Outcome)) as memory:
        ids = dict(zip(cases.logs, memory.add_many(cases.logs.values()), strict=True))
        memory.embed_pending()
        logs = {ids[name]: trace for name, trace in cases.logs.items()}
        ways = _ways(memory, embedder, logs)
        found: dict[str, list[Result]] = {name: [] for name in ways}
        for number, query in enumerate(cases.queries, 1):
            asked = query.model_copy(update={"log": query.log and ids[query.log]})
            for name, search in ways.items():
                found[name].append((asked, search(asked)))
            progress(number, len(cases.queries))
    return found


def _ways(memory: KVLogMemory, embedder: Embedder, logs: Mapping[str, Trace]) -> dict[str, Search]:
    similar = measure(embedder, words=False)
    return {
        ONE_VECTOR: VectorSearch(logs, embedder, _COSINE),
        "several keys, cosine 0.5": KeySearch(memory, embedder, _BY_SIMILARITY, _COSINE),
        "keys, relevance without words": KeySearch(memory, embedder, similar, _RELEVANCE),
        "as shipped, without before": MemorySearch(memory, _RELEVANCE, with_before=False),
        SHIPPED: MemorySearch(memory, _RELEVANCE),
        "as shipped, but min_score=0.5": MemorySearch(memory, _COSINE),
    }

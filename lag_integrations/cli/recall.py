"""What a store recalls for queries whose logs are known: ``kvlog eval --recall``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lag_integrations.cli.opening import Place, full_id
from lag_integrations.cli.output import progress_bar, say, show_json, show_table
from lag_integrations.errors import EvaluationError, StoreError

if TYPE_CHECKING:
    from lag_integrations.evaluation.recall.queries import RecallQuery
    from lag_integrations.store.ledger import Ledger


def evaluate_recall(
    place: Place,
    path: Path,
    *,
    k: int,
    min_relevance: float | None,
    min_score: float | None,
    held_out: int | None,
    embedder: str | None,
    as_json: bool,
) -> None:
    """Search a store for queries, and print how often their logs were found.

    Args:
        place: Where the store is.
        path: The queries.
        k: Most logs to recall.
        min_relevance: Least probability that a log fits; 0.5 by default.
        min_score: Least cosine similarity instead.
        held_out: Of how many queries one is reported apart.
        embedder: The store's embedder.
        as_json: Whether to print JSON.

    Raises:
        EvaluationError: A query is malformed, or its log is not in the store; says which line.
        StoreError: There is no such store, or it fails.
    """
    from lag_integrations.evaluation.recall.figures import HEADER, by_kind, split
    from lag_integrations.evaluation.recall.queries import read_queries
    from lag_integrations.evaluation.recall.searches import MemorySearch
    from lag_integrations.evaluation.report import require
    from lag_integrations.store.floor import MIN_RELEVANCE, Floor

    require()
    placed = read_queries(path)
    floor = Floor(MIN_RELEVANCE if min_relevance is None else min_relevance, min_score)
    with place.memory(embedder) as memory:
        queries = list(_known(memory.store.ledger, placed))
        memory.embed_pending()
        search = MemorySearch(memory, floor, k)
        found = []
        with progress_bar("Searching") as progress:
            for query in queries:
                found.append((query, search(query)))
                progress(len(found), len(queries))
        logs = memory.store.ledger.count()
    parts = {part: by_kind(some, k) for part, some in split(found, held_out).items()}
    if as_json:
        tables = {part: [asdict(one) for one in rows] for part, rows in parts.items()}
        show_json({"logs": logs, "k": k, "floor": str(floor), "queries": tables})
        return
    say(f"{len(queries):,} queries to {logs:,} logs; at most {k} are recalled, from {floor}.")
    for part, rows in parts.items():
        say(f"\n{part.capitalize()}, with 95 % intervals")
        show_table(HEADER, [one.cells for one in rows])


def _known(ledger: Ledger, placed: Sequence[tuple[str, RecallQuery]]) -> Iterator[RecallQuery]:
    """Yield the queries with whole ids."""
    for place, query in placed:
        try:
            log = None if query.log is None else full_id(ledger, query.log)
        except StoreError as error:
            raise EvaluationError(f"{place}: {error}") from error
        yield query.model_copy(update={"log": log})

"""The command that shows what a task would recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.log_view import of_trace
from lag_integrations.cli.opening import Embedder, Place, at_store, flush
from lag_integrations.cli.options import AsJson, FlushAfter, Outcomes, WhereFilter
from lag_integrations.cli.output import short_id, show_json, show_table, warn

if TYPE_CHECKING:
    from lag_integrations.memory.results import Candidate, RecalledLog

_FOUND = ("id", "relevance", "score", "by")


@at_store
def search(
    place: Place,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The task to find logs for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most logs to find.")] = 3,
    min_relevance: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability that a log fits.")
    ] = 0.5,
    min_score: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Least cosine similarity instead.")
    ] = None,
    where: WhereFilter = None,
    outcome: Outcomes = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: the nearest logs; 1: logs that differ.")
    ] = 0.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show all that is near, and why it is not recalled.")
    ] = False,
    flush_first: FlushAfter = False,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Show the logs that a task would recall, best first; this does not count as a recall."""
    with place.memory(embedder) as memory:
        if flush_first:
            flush(memory)
        elif waiting := memory.store.embeddings.count_missing():
            warn(f"{waiting} logs are not embedded yet, and not found; --flush embeds them first.")
        outcomes = [one.value for one in outcome] if outcome else None
        asked: dict[str, Any] = {
            "k": k,
            "min_relevance": min_relevance,
            "min_score": min_score,
            "where": where,
            "outcomes": outcomes,
        }
        if explain:
            _show_candidates(memory.explain(query, **asked), as_json)
            return
        found = memory.search(query, diversity=diversity, count=False, **asked)
        if as_json:
            show_json([_as_found(one) for one in found.logs])
        else:
            show_table([*_FOUND, "outcome", "task"], [_row(one) for one in found.logs])
        if not found.logs:
            warn(_nothing_found(found.nearest_miss))


def _row(log: RecalledLog) -> tuple[object, ...]:
    kind = "" if log.key is None else log.key.kind
    numbers = f"{log.relevance or 0:.2f}", f"{log.score or 0:.3f}"
    return short_id(log.id), *numbers, kind, log.trace.outcome, log.trace.task


def _show_candidates(candidates: Sequence[Candidate], as_json: bool) -> None:
    if as_json:
        show_json(
            [
                _as_found(one.log)
                | {"words": round(one.words, 3), "runs": one.runs and one.runs._asdict()}
                | {"recalled": one.is_recalled, "why": one.missed}
                for one in candidates
            ]
        )
        return
    rows = []
    for one in candidates:
        id, relevance, score, kind, _, task = _row(one.log)
        why = "recalled" if one.is_recalled else "; ".join(one.missed)
        runs = f"{one.runs.succeeded} of {sum(one.runs)}" if one.runs else ""
        rows.append((id, relevance, score, kind, f"{one.words:.2f}", runs, task, why))
    show_table([*_FOUND, "words", "succeeded", "task", "why"], rows)


def _nothing_found(nearest: RecalledLog | None) -> str:
    if nearest is None:
        return "There are no such logs."
    return (
        f"Nothing is recalled. Nearest is {short_id(nearest.id)}, with a relevance of "
        f"{nearest.relevance:.2f} and a similarity of {nearest.score:.3f}; --explain says more."
    )


def _as_found(log: RecalledLog) -> dict[str, Any]:
    return {
        "id": log.id,
        "relevance": log.relevance,
        "score": log.score,
        "key": None if log.key is None else vars(log.key),
        **of_trace(log.trace),
    }

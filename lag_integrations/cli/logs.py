"""Commands about single logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.log_view import as_dict, contains, kind, readable
from lag_integrations.cli.opening import IDS, Embedder, LogId, Place, at_store, flush, full_id
from lag_integrations.cli.options import (
    AsJson,
    FlushAfter,
    Limit,
    Outcomes,
    WhereFilter,
    parse_since,
)
from lag_integrations.cli.output import (
    human_size,
    iso_time,
    progress_bar,
    say,
    short_id,
    show_json,
    show_table,
)
from lag_integrations.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from lag_integrations.store.database import Database
    from lag_integrations.store.ledger import Ledger
    from lag_integrations.store.log_info import LogInfo

_AT_ONCE = 500


class Order(str, Enum):
    """What a list is sorted by."""

    captured = "captured"
    seen = "seen"
    recalled = "recalled"
    helped = "helped"
    harmed = "harmed"


@at_store
def ls(
    place: Place,
    limit: Limit = 20,
    since: Annotated[
        Any,
        typer.Option(
            metavar="TIME",
            parser=parse_since,
            help="Only logs captured since then (2026-01-31, 2026-01-31T12:00:00Z) or in the last "
            "30d, 12h.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Only logs with this text in their task, messages or calls, whatever the case."
        ),
    ] = None,
    sort: Annotated[
        Order,
        typer.Option(
            help="Sort by when logs were captured last, or by how often they were seen, were "
            "recalled, helped or harmed; highest first."
        ),
    ] = Order.captured,
    outcome: Outcomes = None,
    where: WhereFilter = None,
    as_json: AsJson = False,
) -> None:
    """List logs, newest first, or as --sort says."""
    with place.ledger_only() as (database, opened):
        from lag_integrations.store.filters import condition
        from lag_integrations.store.schema import logs

        conditions = [] if since is None else [logs.c.captured_at >= since]
        if outcome:
            conditions.append(logs.c.outcome.in_([one.value for one in outcome]))
        if where is not None:
            conditions.append(condition(where))
        ids = _sorted(database, opened.namespace, conditions, sort)
        found = islice(_matching(opened, ids, text, limit), limit)
        if as_json:
            show_json([as_dict(info) for info in found])
            return
        rows = [
            (
                short_id(info.id),
                iso_time(info.captured_at),
                kind(info.trace),
                info.trace.outcome,
                info.state,
                human_size(info.bytes),
                info.trace.task,
            )
            for info in found  # one page at a time: traces can be large
        ]
    show_table(["id", "captured", "kind", "outcome", "state", "size", "task"], rows)


@at_store
def show(place: Place, log: LogId, as_json: AsJson = False) -> None:
    """Show one log, with what its trace says."""
    with place.ledger_only() as (_, opened):
        key = full_id(opened, log)
        found = opened.info([key])
        runs = opened.run_outcomes([key]).get(key)
        if not found:
            raise StoreError(
                f"The trace of log {key} is damaged. Restore it from a backup, or import an "
                "export of it."
            )
        if as_json:
            told = {"runs": runs and runs._asdict()}
            show_json(as_dict(found[0]) | told | {"trace": found[0].trace.model_dump(mode="json")})
        else:
            for line in readable(found[0], runs):
                say(line)


def _sorted(
    database: Database, namespace: str, conditions: Sequence[ColumnElement[bool]], order: Order
) -> Sequence[str]:
    """Return the ids of logs that fulfil conditions, in an order."""
    from sqlalchemy import select

    from lag_integrations.store.schema import logs

    column = logs.c.captured_at if order is Order.captured else logs.c[f"times_{order.value}"]
    statement = (
        select(logs.c.id)
        .where(logs.c.namespace == namespace, *conditions)
        .order_by(column.desc(), logs.c.captured_at.desc(), logs.c.id)
    )
    with database.read() as connection:
        return connection.execute(statement).scalars().all()


def _matching(
    ledger: Ledger, ids: Sequence[str], text: str | None, limit: int
) -> Iterator[LogInfo]:
    """Yield logs with a text, or all, in the order of their ids; damaged ones are left out."""
    size = _AT_ONCE if text else min(limit, _AT_ONCE)
    for start in range(0, len(ids), size):
        for page in ledger.pages(ids[start : start + size]):
            found = {info.id: info for info in ledger.info(page)}
            infos = (found[key] for key in page if key in found)
            yield from (info for info in infos if not text or contains(info.trace, text.casefold()))


@at_store
def add(
    place: Place,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="JSON or JSONL with traces; - is stdin."),
    ],
    flush_after: FlushAfter = False,
    embedder: Embedder = None,
    as_json: AsJson = False,
) -> None:
    """Add traces from files: all of them, or, if one is bad, none.

    A trace is what Trace.to_json returns, or {"messages": [...], "task": ..., "outcome": ...,
    "metadata": {...}}, of which only the messages are needed. A file holds one, a list, or one a
    line (JSONL).
    """
    from lag_integrations.traces.trace_file import TraceFile

    sources = [TraceFile(name) for name in files]
    total = sum(1 for source in sources for _ in source)  # looks at every one
    ids: list[str] = []
    with (
        place.ledger_only(create=True) as (_, opened),
        progress_bar("Adding") as progress,
    ):
        traces = (trace for source in sources for trace in source)
        while batch := list(islice(traces, _AT_ONCE)):
            ids += opened.add(batch)
            progress(len(ids), total)
    if flush_after:
        with place.memory(embedder) as memory:
            flush(memory)
    if as_json:
        show_json({"traces": len(ids), "logs": len(set(ids)), "ids": ids})
    else:
        say(f"Added {len(ids):,} traces ({len(set(ids)):,} different logs).")


@at_store
def feedback(
    place: Place,
    log: LogId,
    helped: Annotated[
        bool | None,
        typer.Option("--helped/--harmed", help="What the log did when it was recalled."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a recalled log helped or harmed."""
    if helped is None:
        raise typer.BadParameter("give --helped or --harmed.")
    with place.ledger_only() as (_, opened):
        key = full_id(opened, log)
        opened.count_feedback([key], helped=helped)
        info = opened.info([key])
    counts = {"helped": info[0].times_helped, "harmed": info[0].times_harmed} if info else {}
    if as_json:
        show_json({"id": key, **counts})
    else:
        say(f"{key}: " + ", ".join(f"{name} {number} times" for name, number in counts.items()))


@at_store
def delete(
    place: Place,
    ids: Annotated[list[str] | None, IDS] = None,
    where: WhereFilter = None,
    as_json: AsJson = False,
) -> None:
    """Delete logs, with their segments and index entries; none if one is not found.

    Give ids, or --where: '{"sources": "doc-7"}' for all that were shown a document.
    """
    if bool(ids) == (where is not None):
        raise typer.BadParameter("give either ids of logs, or --where.")
    with place.store() as opened:
        found = opened.ledger.ids(where) if where else ()
        gone = opened.delete([*found, *(full_id(opened.ledger, log) for log in ids or ())])
        opened.finish_removals()
        receipt = opened.receipt(gone, swept=True)
    if as_json:
        show_json({"deleted": receipt.ids, "remains": [vars(one) for one in receipt.remains]})
    else:
        say(f"Deleted {receipt.logs:,} logs.")
        for remainder in receipt.remains if gone else ():
            say(f"There may still be {remainder}.")

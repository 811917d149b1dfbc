"""Commands about single logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.opening import Place, full_id
from lag_integrations.cli.options import (
    AsJson,
    EmbedderName,
    FlushAfter,
    IndexUrl,
    LedgerUrl,
    LogId,
    Namespace,
    Outcomes,
    SegmentsUrl,
    StorePath,
    WhereFilter,
)
from lag_integrations.cli.output import (
    human_size,
    human_time,
    progress_bar,
    say,
    show_json,
    show_table,
    warn,
)
from lag_integrations.errors import StoreError
from lag_integrations.traces.message import Message

if TYPE_CHECKING:
    from lag_integrations import KVLogMemory
    from lag_integrations.memory.results import Candidate, RecalledLog
    from lag_integrations.store.log_info import LogInfo
    from lag_integrations.traces.trace import Trace

_AT_ONCE = 500
_SHORT_ID = 12


def ls(
    store: StorePath,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most logs to list.")] = 20,
    outcome: Outcomes = None,
    where: WhereFilter = None,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """List logs, newest first."""
    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        outcomes = [one.value for one in outcome] if outcome else None
        found = opened.info(outcomes=outcomes, where=where, limit=limit)  # type: ignore[arg-type]
        if as_json:
            show_json([as_dict(info) for info in found])
            return
        rows = [
            (
                info.id[:_SHORT_ID],
                human_time(info.captured_at)[:16],
                info.trace.outcome,
                info.state,
                human_size(info.bytes),
                info.trace.task,
            )
            for info in found
        ]
        columns = ["id", "captured (UTC)", "outcome", "state", "size", "task"]
        show_table(columns, rows)


def show(
    store: StorePath,
    log: LogId,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show one log, with what its trace says."""
    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        key = full_id(opened, log)
        found = opened.info([key])
        if not found:
            raise StoreError(
                f"The trace of log {key} is damaged. Restore it from a backup, or import an "
                "export of it."
            )
        if as_json:
            show_json(as_dict(found[0]) | {"trace": found[0].trace.model_dump(mode="json")})
        else:
            for line in readable(found[0]):
                say(line)


def search(
    store: StorePath,
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
    flush: FlushAfter = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Show the logs that a task would recall, best first; this does not count as a recall."""
    place = Place(store, namespace, ledger, segments_url, index)
    with place.memory(embedder) as memory:
        if flush:
            _flush(memory)
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


_FOUND = ("id", "relevance", "score", "by")


def _row(log: RecalledLog) -> tuple[object, ...]:
    kind = "" if log.key is None else log.key.kind
    numbers = f"{log.relevance or 0:.2f}", f"{log.score or 0:.3f}"
    return log.id[:_SHORT_ID], *numbers, kind, log.trace.outcome, log.trace.task


def _show_candidates(candidates: Sequence[Candidate], as_json: bool) -> None:
    if as_json:
        show_json(
            [
                _as_found(one.log)
                | {"words": round(one.words, 3), "recalled": one.is_recalled, "why": one.missed}
                for one in candidates
            ]
        )
        return
    rows = []
    for one in candidates:
        id, relevance, score, kind, _, task = _row(one.log)
        why = "recalled" if one.is_recalled else "; ".join(one.missed)
        rows.append((id, relevance, score, kind, f"{one.words:.2f}", task, why))
    show_table([*_FOUND, "words", "task", "why"], rows)


def _nothing_found(nearest: RecalledLog | None) -> str:
    if nearest is None:
        return "There are no such logs."
    return (
        f"Nothing is recalled. Nearest is {nearest.id[:_SHORT_ID]}, with a relevance of "
        f"{nearest.relevance:.2f} and a similarity of {nearest.score:.3f}; --explain says more."
    )


def _as_found(log: RecalledLog) -> dict[str, Any]:
    return {
        "id": log.id,
        "relevance": log.relevance,
        "score": log.score,
        "key": None if log.key is None else vars(log.key),
        **_of_trace(log.trace),
    }


def add(
    store: StorePath,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="JSON or JSONL with traces; - is stdin."),
    ],
    flush: FlushAfter = False,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    embedder: EmbedderName = None,
    as_json: AsJson = False,
) -> None:
    """Add traces from files: all of them, or, if one is bad, none.

    A trace is what Trace.to_json gives, or {"messages": [...], "task": ..., "outcome": ...,
    "metadata": {...}}, of which only the messages are needed. A file holds one, a list, or one a
    line (JSONL).
    """
    from lag_integrations.traces.trace_file import TraceFile

    sources = [TraceFile(name) for name in files]
    total = sum(1 for source in sources for _ in source)  # looks at every one
    place = Place(store, namespace, ledger, segments_url, index)
    ids: list[str] = []
    with (
        place.ledger_only(create=True) as (_, opened),
        progress_bar("Adding") as progress,
    ):
        traces = (trace for source in sources for trace in source)
        while batch := list(islice(traces, _AT_ONCE)):
            ids += opened.add(batch)
            progress(len(ids), total)
    if flush:
        with place.memory(embedder) as memory:
            _flush(memory)
    if as_json:
        show_json({"traces": len(ids), "logs": len(set(ids)), "ids": ids})
    else:
        say(f"Added {len(ids):,} traces ({len(set(ids)):,} different logs).")


def feedback(
    store: StorePath,
    log: LogId,
    helped: Annotated[
        bool | None,
        typer.Option("--helped/--harmed", help="What the log did when it was recalled."),
    ] = None,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a recalled log helped or harmed."""
    if helped is None:
        raise typer.BadParameter("give --helped or --harmed.")
    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        key = full_id(opened, log)
        opened.count_feedback([key], helped=helped)
        info = opened.info([key])
    counts = {"helped": info[0].times_helped, "harmed": info[0].times_harmed} if info else {}
    if as_json:
        show_json({"id": key, **counts})
    else:
        say(f"{key}: " + ", ".join(f"{name} {number} times" for name, number in counts.items()))


def delete(
    store: StorePath,
    logs: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID...", help="Ids of logs, or at least 4 of their first digits."),
    ] = None,
    where: WhereFilter = None,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete logs, with their segments and index entries; none if one is not found.

    Give ids, or --where: '{"sources": "doc-7"}' for all that were shown a document.
    """
    if bool(logs) == (where is not None):
        raise typer.BadParameter("give either ids of logs, or --where.")
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        found = opened.ledger.ids(where) if where else ()
        gone = opened.delete([*found, *(full_id(opened.ledger, log) for log in logs or ())])
        opened.finish_removals()
        receipt = opened.receipt(gone, swept=True)
    if as_json:
        show_json({"deleted": receipt.ids, "remains": [vars(one) for one in receipt.remains]})
    else:
        say(f"Deleted {receipt.logs:,} logs.")
        for remainder in receipt.remains if gone else ():
            say(f"There may still be {remainder}.")


def _flush(memory: KVLogMemory) -> None:
    with progress_bar("Embedding") as progress:
        memory.flush(progress)


def _of_trace(trace: Trace) -> dict[str, Any]:
    return {"outcome": trace.outcome, "task": trace.task, "metadata": trace.metadata}


def as_dict(info: LogInfo) -> dict[str, Any]:
    """Return what the ledger says of a log, but for what it holds."""
    fields = {name: value for name, value in vars(info).items() if name != "trace"}
    return fields | _of_trace(info.trace)


def readable(info: LogInfo) -> Iterator[str]:
    """Return a log as lines for people."""
    trace = info.trace
    yield f"log       {info.id}"
    yield f"captured  {human_time(info.captured_at)}, {info.times_seen} times"
    yield f"state     {info.state}, {info.segments} segments, {human_size(info.bytes)}"
    yield (
        f"used      recalled {info.times_recalled}, helped {info.times_helped}, "
        f"harmed {info.times_harmed} times"
    )
    yield f"outcome   {trace.outcome}"
    if info.source is not None:
        yield f"source    {info.source}, the least trusted that it follows"
    yield f"task      {trace.task}"
    for name, value in trace.metadata.items():
        yield f"metadata  {name} = {value}"
    if trace.helped_by:
        yield f"recalled into it: {', '.join(trace.helped_by)}"
    for message in trace.earlier:
        yield ""
        yield from _message(message, "before the run")
    for message in trace.messages:
        yield ""
        yield from _message(message)


def _message(message: Message, note: str | None = None) -> Iterator[str]:
    notes = [note, message.name, "failed" if message.status == "error" else None]
    yield " ".join(["---", message.role, *(f"({note})" for note in notes if note), "---"])
    if message.text:
        yield message.text
    if not isinstance(message.content, str):
        others = [
            str(block.get("type", "?"))
            for block in message.content
            if isinstance(block, dict) and not isinstance(block.get("text"), str)
        ]
        if others:
            yield f"[not shown: {', '.join(others)}]"
    for call in message.tool_calls:
        yield f"-> {call.name}({_arguments(call.args)})"


def _arguments(args: dict[str, Any] | str) -> str:
    if isinstance(args, str):
        return args
    return ", ".join(f"{name}={value!r}" for name, value in args.items())

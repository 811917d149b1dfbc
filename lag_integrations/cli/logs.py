"""Commands about single logs."""

from __future__ import annotations

from collections.abc import Iterator
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
from lag_integrations.trace import Message

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory
    from lag_integrations.store.ledger import LogInfo
    from lag_integrations.trace import Trace

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
            show_json([_as_dict(info) for info in found])
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
            show_json(_as_dict(found[0]) | {"trace": found[0].trace.model_dump(mode="json")})
        else:
            for line in _readable(found[0]):
                say(line)


def search(
    store: StorePath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="The task to find logs for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most logs to find.")] = 3,
    min_score: Annotated[float, typer.Option(help="Least cosine similarity.")] = 0.5,
    where: WhereFilter = None,
    outcome: Outcomes = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: the nearest logs; 1: logs that differ.")
    ] = 0.0,
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
        found = memory.recall(
            query,
            k=k,
            min_score=min_score,
            where=where,
            outcomes=[one.value for one in outcome] if outcome else None,  # type: ignore[misc]
            diversity=diversity,
            count=False,
        )
        if as_json:
            show_json([{"id": one.id, "score": one.score, **_of_trace(one.log)} for one in found])
            return
        rows = [
            (one.id[:_SHORT_ID], f"{one.score:.3f}", one.log.outcome, one.log.task) for one in found
        ]
        show_table(["id", "score", "outcome", "task"], rows)


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
    from lag_integrations.trace_file import TraceFile

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
        list[str],
        typer.Argument(metavar="ID...", help="Ids of logs, or at least 4 of their first digits."),
    ],
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    segments_url: SegmentsUrl = None,
    index: IndexUrl = None,
    as_json: AsJson = False,
) -> None:
    """Delete logs, with their segments and index entries; none if one is not found."""
    with Place(store, namespace, ledger, segments_url, index).store() as opened:
        gone = sorted(opened.delete([full_id(opened.ledger, log) for log in logs]))
    if as_json:
        show_json({"deleted": gone})
    else:
        say(f"Deleted {len(gone):,} logs.")


def _flush(memory: KVLogMemory) -> None:
    with progress_bar("Embedding") as progress:
        memory.flush(progress)


def _of_trace(trace: Trace) -> dict[str, Any]:
    return {"outcome": trace.outcome, "task": trace.task, "metadata": trace.metadata}


def _as_dict(info: LogInfo) -> dict[str, Any]:
    fields = {name: value for name, value in vars(info).items() if name != "trace"}
    return fields | _of_trace(info.trace)


def _readable(info: LogInfo) -> Iterator[str]:
    trace = info.trace
    yield f"log       {info.id}"
    yield f"captured  {human_time(info.captured_at)}, {info.times_seen} times"
    yield f"state     {info.state}, {info.segments} segments, {human_size(info.bytes)}"
    yield (
        f"used      recalled {info.times_recalled}, helped {info.times_helped}, "
        f"harmed {info.times_harmed} times"
    )
    yield f"outcome   {trace.outcome}"
    yield f"task      {trace.task}"
    for name, value in trace.metadata.items():
        yield f"metadata  {name} = {value}"
    if trace.helped_by:
        yield f"recalled into it: {', '.join(trace.helped_by)}"
    for message in trace.messages:
        yield ""
        yield from _message(message)


def _message(message: Message) -> Iterator[str]:
    notes = [message.name, "failed" if message.status == "error" else None]
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

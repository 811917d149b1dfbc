"""Commands about the logs that a memory's ``screen=`` put aside."""

from __future__ import annotations

from typing import Annotated

import typer

from lag_integrations.cli.logs import as_dict, readable
from lag_integrations.cli.opening import Place, full_id
from lag_integrations.cli.options import AsJson, LedgerUrl, LogId, Namespace, StorePath
from lag_integrations.cli.output import human_time, say, show_json, show_table
from lag_integrations.errors import LogNotFoundError

app = typer.Typer(
    help="Look at logs that a screen put aside, and release them.", no_args_is_help=True
)
_SHORT_ID = 12


@app.command()
def ls(
    store: StorePath,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most logs to list.")] = 20,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the logs in quarantine, newest first."""
    from lag_integrations.memory.quarantine import LogQuarantine

    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        found = LogQuarantine(opened).logs(limit)
    if as_json:
        show_json([as_dict(info) | {"reason": info.quarantine} for info in found])
        return
    rows = [
        (
            info.id[:_SHORT_ID],
            human_time(info.captured_at)[:16],
            info.source or "",
            info.quarantine,
            info.trace.task,
        )
        for info in found
    ]
    show_table(["id", "captured (UTC)", "source", "reason", "task"], rows)


@app.command()
def show(
    store: StorePath,
    log: LogId,
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show why a log is in quarantine, and what its trace says."""
    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        key = full_id(opened, log)
        found = [info for info in opened.info([key]) if info.quarantine is not None]
        if not found:
            raise LogNotFoundError(f"The log {key} is not in quarantine.")
        if as_json:
            trace = found[0].trace.model_dump(mode="json")
            show_json(as_dict(found[0]) | {"reason": found[0].quarantine, "trace": trace})
            return
        say(f"reason    {found[0].quarantine}")
        for line in readable(found[0]):
            say(line)


@app.command()
def release(
    store: StorePath,
    logs: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Ids of logs, or at least 4 of their first digits."),
    ],
    namespace: Namespace = "default",
    ledger: LedgerUrl = None,
    as_json: AsJson = False,
) -> None:
    """Let logs be recalled; none if one is not found."""
    from lag_integrations.memory.quarantine import LogQuarantine

    with Place(store, namespace, ledger).ledger_only() as (_, opened):
        ids = sorted({full_id(opened, log) for log in logs})
        LogQuarantine(opened).release(ids)
    if as_json:
        show_json({"released": ids})
    else:
        say(f"Released {len(ids):,} logs; the next program that works with the store embeds them.")

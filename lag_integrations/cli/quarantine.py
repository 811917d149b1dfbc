"""Commands about the logs that a memory's ``screen=`` put aside."""

from __future__ import annotations

from typing import Annotated

import typer

from lag_integrations.cli.log_view import as_dict, readable
from lag_integrations.cli.opening import IDS, LogId, Place, at_store, full_id
from lag_integrations.cli.options import AsJson, Limit
from lag_integrations.cli.output import iso_time, say, short_id, show_json, show_table
from lag_integrations.errors import LogNotFoundError

app = typer.Typer(
    help="Look at logs that a screen put aside, and release them.", no_args_is_help=True
)


@app.command()
@at_store
def ls(
    place: Place,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List the logs in quarantine, newest first."""
    from lag_integrations.memory.quarantine import LogQuarantine

    with place.ledger_only() as (_, opened):
        found = LogQuarantine(opened).logs(limit)
        if as_json:
            show_json([as_dict(info) | {"reason": info.quarantine} for info in found])
            return
        rows = [
            (
                short_id(info.id),
                iso_time(info.captured_at),
                info.source or "",
                info.quarantine,
                info.trace.task,
            )
            for info in found  # one page at a time: traces can be large
        ]
    show_table(["id", "captured", "source", "reason", "task"], rows)


@app.command()
@at_store
def show(
    place: Place,
    log: LogId,
    as_json: AsJson = False,
) -> None:
    """Show why a log is in quarantine, and what its trace says."""
    with place.ledger_only() as (_, opened):
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
@at_store
def release(
    place: Place,
    logs: Annotated[list[str], IDS],
    as_json: AsJson = False,
) -> None:
    """Let logs be recalled; none if one is not found."""
    from lag_integrations.memory.quarantine import LogQuarantine

    with place.ledger_only() as (_, opened):
        ids = sorted({full_id(opened, log) for log in logs})
        LogQuarantine(opened).release(ids)
    if as_json:
        show_json({"released": ids})
    else:
        say(f"Released {len(ids):,} logs; the next program that works with the store embeds them.")

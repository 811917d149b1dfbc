"""The ``kvlog`` command: look at a store, keep it in order, carry it elsewhere, measure."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lag_integrations.cli import (
    archives,
    calibrate,
    evaluate,
    learn,
    logs,
    quarantine,
    report,
    search,
    serve,
    upkeep,
)
from lag_integrations.cli.output import warn
from lag_integrations.errors import LAGError

_LONGEST = 2_000


class _Commands(TyperGroup):
    """Prints what goes wrong as one line, not as a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error of this package, or of files, ends it with 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (LAGError, OSError) as error:
            message = str(error)
            warn(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}…")
            sys.exit(1)


app = typer.Typer(
    name="kvlog",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they would print local variables: content of traces
    epilog="Exit codes: 0 fine; 1 verify found something, or the command failed; 2 wrong usage.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvlog {version('lag_integrations')}")
        raise typer.Exit


@app.callback()
def kvlog(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and exit."
        ),
    ] = False,
) -> None:
    """Look at a store of KVLogMemory, keep it in order, carry it elsewhere."""


for command in (
    upkeep.stats,
    logs.ls,
    logs.show,
    search.search,
    logs.add,
    logs.feedback,
    logs.delete,
    archives.export,
    archives.import_,
    archives.backup,
    archives.restore,
    upkeep.verify,
    upkeep.repair,
    upkeep.reindex,
    upkeep.reencode,
    learn.learn,
    serve.serve,
    upkeep.prune,
    upkeep.purge,
    upkeep.migrate,
    calibrate.calibrate,
    evaluate.eval_,
    report.report,
):
    app.command(command.__name__.rstrip("_"))(command)
app.add_typer(quarantine.app, name="quarantine")

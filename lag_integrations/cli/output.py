"""What is printed: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import typer
from pydantic import ByteSize
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_SHORT_ID = 12


def show_json(document: Any) -> None:
    """Print one JSON document, in ASCII: any terminal and pipe takes it."""
    typer.echo(json.dumps(document, indent=2))


def say(text: str) -> None:
    """Print a line for people on stdout."""
    typer.echo(printable(text))


def warn(text: str) -> None:
    """Print a line on stderr."""
    typer.echo(f"kvlog: {printable(' '.join(text.split()))}", err=True)


def printable(text: str) -> str:
    """Return a text with its control characters escaped: a trace must not steer the terminal."""
    return "".join(
        character if character in "\n\t" or character.isprintable() else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, numbers to the right; on a terminal, lines are cut to its width."""
    console = Console()
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    for place in range(len(columns)):
        numbers = bool(rows) and all(isinstance(row[place], int) for row in rows)
        width = max(cell_len(line[place]) for line in lines)
        for line in lines:
            padding = " " * (width - cell_len(line[place]))
            line[place] = padding + line[place] if numbers else line[place] + padding
    for line in lines:
        text = Text("  ".join(line).rstrip())
        if console.is_terminal:
            text.truncate(console.width, overflow="ellipsis")
        typer.echo(text.plain)


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(printable(str(value)).split())


def human_size(number: float) -> str:
    """Return a number of bytes for people."""
    return ByteSize(number).human_readable(decimal=True)


def iso_time(seconds: float, timespec: str = "seconds") -> str:
    """Return Unix seconds as an ISO 8601 time in UTC."""
    try:
        moment = datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError):  # no year that there is
        return str(seconds)
    return moment.isoformat(timespec=timespec)


def short_id(log_id: str) -> str:
    """Return as much of a log's id as a table shows."""
    return log_id[:_SHORT_ID]


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if that is a terminal.

    Yields:
        What sets it: call it with the number of steps done, and of all.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    shown = sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr for each thing that is being done.

    Yields:
        What sets them: call it with what is done, the number of steps done, and of all.
    """
    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show

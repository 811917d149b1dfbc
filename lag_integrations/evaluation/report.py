"""Results for people: in a terminal, as Markdown, and as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.results import Results
from lag_integrations.evaluation.tables import (
    Grid,
    floor_tables,
    joined,
    percent,
    points,
    shown,
    tables,
    title,
)

if TYPE_CHECKING:
    from jinja2 import Environment


def require() -> None:
    """Make sure that reports can be made.

    Raises:
        EvaluationError: The extra ``evaluation`` is not installed.
    """
    missing = [name for name in ("scipy", "jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise EvaluationError(
            f"The report of an evaluation needs {', '.join(missing)}. "
            "Install it with: pip install 'lag_integrations[evaluation]'"
        )


def console(results: Results | Mapping[str, Results]) -> Group:
    """Return tables for a terminal; those of several models, by name, are joined."""
    return Group(*(as_table(grid) for grid in _grids(results)))


def markdown(results: Results | Mapping[str, Results]) -> str:
    """Return tables as GitHub Markdown; those of several models, by name, are joined."""
    return "\n".join(as_markdown(grid) for grid in _grids(results))


def html(results: Results, settings: Mapping[str, object], path: Path) -> None:
    """Write a report as one file, with tables and pictures.

    Args:
        results: What is reported.
        settings: What it was measured with, in words: dataset, model, machine, and so on.
        path: The file.

    Raises:
        EvaluationError: The extra ``evaluation`` is not installed.
    """
    environment = _environment()
    from lag_integrations.evaluation.plots import draw

    page = environment.get_template("report.html").render(
        results=results,
        settings=settings,
        parts={part: title(results, part) for part in shown(results)},
        tables={part: tables(results, part) for part in shown(results)},
        floors=floor_tables(results),
        plots=draw(results),
    )
    path.write_text(page, "utf-8")


def models_html(results: Mapping[str, Results], told: str, path: Path) -> None:
    """Write the joined tables of several models as one file.

    Args:
        results: By model; a folder of that name beside the file holds the model's own report.
        told: What was measured, in words.
        path: The file.

    Raises:
        EvaluationError: The extra ``evaluation`` is not installed.
    """
    template = _environment().get_template("models.html")
    page = template.render(models=list(results), told=told, grids=_grids(results))
    path.write_text(page, "utf-8")


def _environment() -> Environment:
    require()
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("lag_integrations.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points)
    return environment


def _grids(results: Results | Mapping[str, Results]) -> tuple[Grid, ...]:
    if not isinstance(results, Results):
        return joined({model: _grids(of_model) for model, of_model in results.items()})
    answered = (grid for part in shown(results) for grid in tables(results, part))
    return (*answered, *floor_tables(results))


def as_table(grid: Grid) -> Table:
    """Return a table for a terminal."""
    found = Table(
        title=f"\n{grid.title}",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    arm, *figures = grid.header
    found.add_column(arm, no_wrap=True)
    for name in figures:
        found.add_column(name, justify="right", overflow="fold")
    for row in grid.rows:
        found.add_row(*map(Text, row.cells), style="bold" if row.best else None)
    return found


def as_markdown(grid: Grid) -> str:
    """Return a table as GitHub Markdown."""
    lines = [
        f"**{grid.title}**",
        "",
        _line(grid.header),
        _line(["---", *["---:"] * (len(grid.header) - 1)]),
        *(_line(row.cells) for row in grid.rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")

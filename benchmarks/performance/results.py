"""A run's figures: as a file, as a table, and beside those of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.performance.paired import Figure
from lag_integrations.evaluation.machine import machine


def conditions(engine_name: str, dtype: str) -> dict[str, str]:
    """Return what was measured, when and on what machine."""
    return {
        "date": str(date.today()),
        "machine": machine(),
        "model": f"{engine_name}, {dtype}",
        "versions": ", ".join(_versions("torch", "transformers", "chromadb")),
    }


def _versions(*packages: str) -> Iterator[str]:
    """Yield those of some packages that are installed, with their versions."""
    for package in packages:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:  # a GPU's machine needs no store
            continue


def save(path: Path, about: dict[str, str], figures: Sequence[Figure]) -> None:
    """Write a run."""
    found = {"about": about, "figures": [figure.to_json() for figure in figures]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), "utf-8")


def read(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Read what `save` wrote."""
    found = json.loads(path.read_text("utf-8"))
    return found["about"], [Figure.from_json(figure) for figure in found["figures"]]


def tables(figures: Iterable[Figure]) -> Iterator[Table]:
    """Return a table for each suite: each way's value, and its ratios to others, with quartiles."""
    for suite, of in groupby(figures, key=lambda figure: figure.suite):
        rows = list(of)
        bases = list(dict.fromkeys(base for row in rows for base in row.ratios))
        table = Table("", "", "median", *(f"/ {base}" for base in bases), title=suite)
        for row in rows:
            _, place, way = row.key
            ratios = (str(row.ratios.get(base, "")) for base in bases)
            table.add_row(place, way, f"{row.value.median:.4g}", *ratios)
        yield table


def markdown(figures: Iterable[Figure]) -> str:
    """Return the tables as Markdown, for documentation."""
    parts = []
    for table in tables(figures):
        heads = [str(column.header) for column in table.columns]
        cells = [list(column.cells) for column in table.columns]
        lines = [f"**{table.title}**", "", _line(heads), _line(["---"] * len(heads))]
        lines += [_line([str(cell) for cell in row]) for row in zip(*cells, strict=True)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def changes(before: Iterable[Figure], now: Iterable[Figure]) -> Table:
    """Return a table of ratios that differ from an earlier run's by more than the quartiles."""
    table = Table("", "", "", "", "before", "now", title="Changed since")
    known = {figure.key: figure for figure in before}
    for figure in now:
        earlier = known.get(figure.key)
        for base, ratio in figure.ratios.items():
            then = None if earlier is None else earlier.ratios.get(base)
            if then is not None and (ratio.low > then.high or ratio.high < then.low):
                table.add_row(*figure.key, f"/ {base}", str(then), str(ratio))
    return table

"""What is recalled, and what wrongly: ``python -m benchmarks.recall --data DIR``.

Logs and queries are our own and of public data; no model answers. Writes ``recall.md`` and
``recall.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import Progress

from benchmarks.recall.benchmark import ONE_VECTOR, SHIPPED, compare
from benchmarks.recall.cases import joined, own_cases, public_cases
from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.recall.figures import ALL, HEADER, Figures, by_kind, split
from lag_integrations.evaluation.recall.searches import NEAREST
from lag_integrations.evaluation.report import as_markdown, require
from lag_integrations.evaluation.tables import Grid, Row

_HELD_OUT = 3
_BOTH = "tuned on and held out"

Rows = Mapping[str, list[Figures]]
"""The figures of each kind of query, by the way of finding logs."""


def main() -> None:
    """Ask all queries in every way, print and write tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recall", description=__doc__)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with musique/, 2wiki/, react/, formula/"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the tables")
    parser.add_argument("--embedder", help="hub id or folder; the packaged MiniLM by default")
    arguments = parser.parse_args()
    require()
    cases = joined(own_cases(), public_cases(arguments.data))
    with tempfile.TemporaryDirectory() as folder, Progress() as progress:
        bar = progress.add_task("Searching")
        found = compare(
            cases,
            Path(folder),
            arguments.embedder,
            lambda done, total: progress.update(bar, completed=done, total=total),
        )
    parts: dict[str, dict[str, list[Figures]]] = {}
    for way, results in found.items():
        for part, some in {**split(results, _HELD_OUT), _BOTH: results}.items():
            parts.setdefault(part, {})[way] = by_kind(some, NEAREST)
    told = (
        f"{len(cases.queries):,} queries to {len(cases.logs):,} logs, at most {NEAREST} recalled; "
        f"{stamp()}"
    )
    text = "\n".join([f"{told}\n", *(as_markdown(grid) for grid in _grids(parts))])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "recall.md").write_text(text, "utf-8")
    document = {
        "about": told,
        "parts": {
            part: {way: [asdict(one) for one in rows] for way, rows in ways.items()}
            for part, ways in parts.items()
        },
    }
    (arguments.out / "recall.json").write_text(json.dumps(document, indent=1), "utf-8")
    print(text)


def _grids(parts: Mapping[str, Rows]) -> Iterator[Grid]:
    """Yield tables: all kinds in every way, the kinds before and as shipped, each in every way."""
    for part, ways in parts.items():
        yield _grid(f"All kinds, {part}", "way", _rows(ways, ALL))
    for part, ways in parts.items():
        for way in (ONE_VECTOR, SHIPPED):
            yield _grid(f"{way.capitalize()}, {part}", "queries", ways[way])
    ways = parts[_BOTH]
    for kind in [one.kind for one in ways[SHIPPED]][:-1]:
        yield _grid(f"{kind.capitalize()}, {_BOTH}", "way", _rows(ways, kind))


def _rows(ways: Rows, kind: str) -> Iterator[Figures]:
    """Yield one kind of query, a row for each way."""
    for way, rows in ways.items():
        yield from (replace(one, kind=way) for one in rows if one.kind == kind)


def _grid(title: str, first: str, rows: Iterable[Figures]) -> Grid:
    return Grid(title, (first, *HEADER[1:]), tuple(Row(one.cells, False) for one in rows))


if __name__ == "__main__":
    main()

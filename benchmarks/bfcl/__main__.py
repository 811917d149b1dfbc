"""Tool calls of a model on BFCL: ``python -m benchmarks.bfcl``.

Single-turn questions with even numbers, asked through `LAGChatModel` with ``bind_tools``. What is
answered goes to a file, so that a run that was interrupted goes on where it was; several models may
share a folder, and stand in its report together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.bfcl.answers import Records, answer_all
from benchmarks.bfcl.cases import CATEGORIES, read_cases
from benchmarks.bfcl.scores import HEADER, markdown, rows
from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp


def main() -> None:
    """Ask what is not answered yet, print a table and write a report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bfcl", description=__doc__)
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument(
        "--categories", nargs="+", choices=CATEGORIES, default=CATEGORIES, metavar="CATEGORY"
    )
    parser.add_argument("--number", type=int, default=60, help="questions of each category")
    parser.add_argument("--batch", type=int, default=8, help="questions that are asked together")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("results/bfcl"), help="a folder")
    arguments = parser.parse_args()
    model = str(packaged.resolve(arguments.model))
    name = Path(model).name if Path(model).is_dir() else model
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = Records(arguments.out / "records.jsonl")
    cases = [case for one in arguments.categories for case in read_cases(one, arguments.number)]
    asked = [case for case in cases if (name, case.id) not in records]
    if asked:
        engine = Engine.load(model)
        answered = answer_all(
            engine, name, asked, batch=arguments.batch, max_tokens=arguments.max_tokens
        )
        with Progress() as progress:
            bar = progress.add_task(name, total=len(asked))
            for some in answered:
                for record in some:
                    records.add(record)
                progress.advance(bar, len(some))
    found = rows(cases, records)
    caption = f"{stamp()} · {name} · temperature 0, at most {arguments.max_tokens} tokens"
    (arguments.out / "report.md").write_text(markdown(found, caption), encoding="utf-8")
    table = Table(*HEADER, title="Tool calls: BFCL, single turn", caption=caption)
    for row in found:
        table.add_row(*row.cells)
    Console().print(table)


if __name__ == "__main__":
    main()

"""The command that reports an evaluation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lag_integrations.cli.output import say, warn
from lag_integrations.cli.tool_tasks import DATASET, report_tool_tasks
from lag_integrations.errors import EvaluationError

if TYPE_CHECKING:
    from lag_integrations.evaluation.results import Results

Against = Annotated[
    str,
    typer.Option("--against", help="The arm that others are compared with, besides none."),
]


def report(
    out: Annotated[Path, typer.Argument(help="Folder of an evaluation.", show_default=False)],
    against: Against = "text_last",
) -> None:
    """Write the report of an evaluation again, of all shards and models in the folder."""
    from rich.console import Console

    from lag_integrations.evaluation import report as reports
    from lag_integrations.evaluation.settings import described, headline

    if not out.is_dir():
        raise EvaluationError(f"There is no folder {out}. Give the --out of an evaluation.")
    folders = (
        [out] if (out / "run.json").exists() else [p.parent for p in sorted(out.glob("*/run.json"))]
    )
    if len(folders) < 2:
        folder = folders[0] if folders else out
        if described(folder / "run.json").get("dataset") == DATASET:
            report_tool_tasks(folder, against)
            return
        results, told = _report(folder, against)
        say(told)
        Console().print(reports.console(results))
        say(f"Report: {folder / 'report.html'}")
        return
    found = {folder.name: _report(folder, against)[0] for folder in folders}
    told = headline({**described(folders[0] / "run.json"), "model": ", ".join(found)})
    reports.models_html(found, told, out / "report.html")
    (out / "report.md").write_text(f"{told}\n\n{reports.markdown(found)}", "utf-8")
    say(told)
    Console().print(reports.console(found))
    say(f"Report: {out / 'report.html'}")


def _report(out: Path, against: str) -> tuple[Results, str]:
    """Write the report of one model, and return its figures and what they are of."""
    from lag_integrations.evaluation import report as reports
    from lag_integrations.evaluation.records import read
    from lag_integrations.evaluation.results import summarize
    from lag_integrations.evaluation.settings import described, headline

    settings = described(out / "run.json")
    records = list(read(sorted(out.glob("records-*.jsonl"))))
    results = summarize(records, min_score=settings["min_score"], against=against)
    told = headline(settings)
    reports.html(results, {"what": told, **settings}, out / "report.html")
    (out / "report.md").write_text(f"{told}\n\n{reports.markdown(results)}", "utf-8")
    failed = Counter(record.error for record in records if record.error)
    for error, count in failed.items():
        warn(f"{count} answers ended with {error} and count as wrong.")
    return results, told

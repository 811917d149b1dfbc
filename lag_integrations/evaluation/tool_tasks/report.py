"""Results for people: the tables that terminal and Markdown share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from rich.console import Group

from lag_integrations.evaluation.report import as_markdown, as_table
from lag_integrations.evaluation.results import Comparison
from lag_integrations.evaluation.tables import Grid, Row, percent, points, with_ends
from lag_integrations.evaluation.tool_tasks.judge import Failure
from lag_integrations.evaluation.tool_tasks.results import ArmFigures, ToolResults

_Columns = Mapping[str, Callable[[ArmFigures], str]]

_RIGHT: _Columns = {
    "arm": lambda of: of.arm,
    "tasks": lambda of: f"{of.tasks:,}",
    "tasks right %": lambda of: with_ends(of.tasks_right),
    "turns right %": lambda of: with_ends(of.turns_right),
    "no log %": lambda of: percent(of.without_log),
}
_COST: _Columns = {
    "arm": lambda of: of.arm,
    "turns of a task": lambda of: f"{of.turns_asked:.2f}",
    "calls": lambda of: f"{of.effort['calls']:.2f}",
    "failed": lambda of: f"{of.effort['failed_calls']:.2f}",
    "rounds": lambda of: f"{of.effort['rounds']:.2f}",
    "prompt": lambda of: f"{of.effort['prompt_tokens']:,.0f}",
    "read": lambda of: f"{of.effort['read_tokens']:,.0f}",
    "injected": lambda of: f"{of.effort['injected_tokens']:,.0f}",
    "written": lambda of: f"{of.effort['generated_tokens']:,.0f}",
    "seconds": lambda of: f"{of.effort['seconds']:.1f}",
}


def console(results: ToolResults) -> Group:
    """Return tables for a terminal."""
    return Group(*map(as_table, _grids(results)))


def markdown(results: ToolResults) -> str:
    """Return tables as GitHub Markdown."""
    return "\n".join(map(as_markdown, _grids(results)))


def _grids(results: ToolResults) -> list[Grid]:
    highest = max(of.turns_right.mean for of in results.figures)
    best = {of.arm for of in results.figures if of.turns_right.mean == highest}
    compared = [
        _compared(f"{what} right, against {other}", comparisons)
        for what, by_other in (("Tasks", results.tasks), ("Turns", results.turns))
        for other, comparisons in by_other.items()
        if comparisons
    ]
    return [
        _grid("Unseen tasks", _RIGHT, results.figures, best),
        *compared,
        _grid("Why tasks are wrong, %", _failures(), results.figures, set()),
        _grid("What one turn took (tokens of all its model calls)", _COST, results.figures, set()),
    ]


def _grid(title: str, columns: _Columns, arms: Sequence[ArmFigures], best: set[str]) -> Grid:
    rows = (Row(tuple(cell(of) for cell in columns.values()), of.arm in best) for of in arms)
    return Grid(title, tuple(columns), tuple(rows))


def _failures() -> _Columns:
    def share(reason: Failure) -> Callable[[ArmFigures], str]:
        return lambda of: percent(of.failures.get(reason, 0.0))

    return {"arm": lambda of: of.arm} | {reason: share(reason) for reason in get_args(Failure)}


def _compared(title: str, comparisons: Sequence[Comparison]) -> Grid:
    header = ("arm", "tasks", "difference", "verdict", "more %", "fewer %")
    rows = (
        Row(
            (
                one.arm,
                f"{one.questions:,}",
                points(one.difference),
                one.verdict,
                percent(one.gained),
                percent(one.harmed),
            ),
            False,
        )
        for one in comparisons
    )
    return Grid(title, header, tuple(rows))

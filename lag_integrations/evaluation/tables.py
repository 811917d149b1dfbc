"""Figures as words: the tables that terminal, Markdown and HTML share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from lag_integrations.evaluation.floors import Floor
from lag_integrations.evaluation.results import BASELINE, Comparison, Figures, Part, Results
from lag_integrations.evaluation.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One arm in a table.

    Attributes:
        cells: Its words, the arm's name first.
        best: Whether it stands out, as no arm has a higher exact match.
    """

    cells: tuple[str, ...]
    best: bool


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: What it is about.
        header: The names of its columns.
        rows: Its rows.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]


def shown(results: Results) -> tuple[Part, ...]:
    """Return the parts to show: not "all" where there is one stratum alone."""
    return results.parts if len(results.parts) > 2 else ("all",)


def title(results: Results, part: Part) -> str:
    """Return a name for a part of the questions."""
    if part != "all":
        return f"{part.capitalize()} questions"
    return "All questions" if len(results.parts) > 2 else f"All questions ({results.parts[1]})"


def tables(results: Results, part: Part) -> tuple[Grid, ...]:
    """Return tables of how well the arms did on a part, how it reads, and what it took."""
    name, arms = title(results, part), results.figures[part].values()
    highest = max(of.exact_match.mean for of in arms)
    best = {of.arm for of in arms if of.exact_match.mean == highest}
    return (
        _grid(f"{name}: answers", _ANSWERS, arms, best),
        *_against(name, results.against[part]),
        *([_grid(f"{name}: how they read", _FLUENCY, arms, set())] if _is_rated(arms) else []),
        _grid(f"{name}: cost of one", _COST, arms, set()),
    )


def floor_tables(results: Results) -> tuple[Grid, ...]:
    """Return, for each arm that can tell, what other floors would have done."""
    header = ("least similarity", "exact match %", "gained %", "harmed %", "no log %")
    return tuple(
        Grid(
            f"{arm}: with another floor (all questions)",
            header,
            tuple(Row(_floor(of), of.exact_match == most) for of in found),
        )
        for arm, found in results.floors.items()
        for most in [max(of.exact_match for of in found)]
    )


def _floor(of: Floor) -> tuple[str, ...]:
    shares = (of.exact_match, of.gained, of.harmed, of.abstained)
    return ("none" if of.floor <= -1 else f"{of.floor:.1f}", *map(percent, shares))


def points(found: Interval) -> str:
    """Return a difference of two shares, in percentage points."""
    return f"{_rounded(found.mean):+.1f} {_ends(found)}"


def percent(share: float | None) -> str:
    """Return a share, in percent."""
    return "-" if share is None else f"{_rounded(share):.1f}"


def with_ends(share: Interval) -> str:
    """Return a share with the ends of its interval, in percent."""
    return f"{percent(share.mean)} {_ends(share)}"


def joined(grids: Mapping[str, Sequence[Grid]]) -> tuple[Grid, ...]:
    """Join the tables of several models by title, with the model before each row."""
    titles = dict.fromkeys(grid.title for of_model in grids.values() for grid in of_model)
    return tuple(
        _joined(
            title,
            {model: grid for model, of in grids.items() for grid in of if grid.title == title},
        )
        for title in titles
    )


def _joined(title: str, grids: Mapping[str, Grid]) -> Grid:
    columns = tuple(dict.fromkeys(name for grid in grids.values() for name in grid.header))
    rows = []
    for model, grid in grids.items():
        for row in grid.rows:
            cells = dict(zip(grid.header, row.cells, strict=True))
            rows.append(Row((model, *(cells.get(name, "-") for name in columns)), row.best))
    return Grid(title, ("model", *columns), tuple(rows))


def _against(name: str, found: Sequence[Comparison]) -> list[Grid]:
    """Return the arms against another one than the baseline, if there are any."""
    if not found:
        return []
    rows = (
        Row((one.arm, f"{one.questions:,}", *(cell(one) for cell in _COMPARED.values())), False)
        for one in found
    )
    return [Grid(f"{name}: against {found[0].other}", ("arm", "n", *_COMPARED), tuple(rows))]


def _is_rated(arms: Iterable[Figures]) -> bool:
    return any(of.repetition is not None for of in arms)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _grid(name: str, columns: _Columns, arms: Iterable[Figures], best: Set[str]) -> Grid:
    """Return a table; what was measured of no arm has no column."""
    of_arms = list(arms)
    cells = {column: [cell(of) for of in of_arms] for column, cell in columns.items()}
    told = {c: found for c, found in cells.items() if c not in _MEASURED or set(found) != {"-"}}
    rows = zip(of_arms, zip(*told.values(), strict=True), strict=True)
    return Grid(name, tuple(told), tuple(Row(row, of.arm in best) for of, row in rows))


def _rounded(share: float) -> float:
    return round(100 * share, 1) + 0.0  # no "-0.0"


def _ends(found: Interval) -> str:
    return f"[{_rounded(found.low):.1f}, {_rounded(found.high):.1f}]"


def _compared(words: Callable[[Comparison], str]) -> Callable[[Figures], str]:
    return lambda of: words(of.against_baseline) if of.against_baseline else "-"


_COMPARED: Mapping[str, Callable[[Comparison], str]] = {
    "difference": lambda found: points(found.difference),
    "verdict": lambda found: found.verdict,
    "gained %": lambda found: percent(found.gained),
    "harmed %": lambda found: percent(found.harmed),
}

_MEASURED = {"parroted %", "calculated %", "nats a token, as text", "seconds", "first token s"}
"""Columns of what is not measured in every run."""

_Columns = Mapping[str, Callable[[Figures], str]]

_ANSWERS: _Columns = {
    "arm": lambda of: of.arm,
    "n": lambda of: f"{of.questions:,}",
    "exact match %": lambda of: with_ends(of.exact_match),
    f"against {BASELINE}": _compared(lambda found: points(found.difference)),
    "verdict": _compared(lambda found: found.verdict),
    "gained %": _compared(lambda found: percent(found.gained)),
    "harmed %": _compared(lambda found: percent(found.harmed)),
    "F1 %": lambda of: with_ends(of.f1),
    "parroted %": lambda of: with_ends(of.parroted) if of.parroted else "-",
    "calculated %": lambda of: with_ends(of.calculated) if of.calculated else "-",
    "no log %": lambda of: percent(of.abstained),
}

_FLUENCY: _Columns = {
    "arm": lambda of: of.arm,
    "repeated %": lambda of: percent(of.repetition),
    "nats a token, as text": lambda of: _number(of.log_likelihood, 2),
}

_COST: _Columns = {
    "arm": lambda of: of.arm,
    "answered %": lambda of: percent(of.answered),
    "rounds": lambda of: f"{of.rounds:.2f}",
    "seconds": lambda of: _number(of.seconds, 2),
    "first token s": lambda of: _number(of.time_to_first_token, 3),
    "tokens read": lambda of: f"{of.computed_tokens:,.0f}",
    "injected": lambda of: f"{of.injected_tokens:,.0f}",
    "written": lambda of: f"{of.generated_tokens:,.0f}",
    "stored MB": lambda of: f"{of.stored_bytes / 1e6:,.2f}",
}

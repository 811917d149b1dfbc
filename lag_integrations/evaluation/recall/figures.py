"""What was found for queries, as figures and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lag_integrations.evaluation.recall.queries import RecallQuery, is_held_out
from lag_integrations.evaluation.recall.searches import Searched
from lag_integrations.evaluation.statistics import Interval, interval
from lag_integrations.evaluation.tables import with_ends

Result = tuple[RecallQuery, Searched]
"""A query with the whole id of its log, and what was found for it."""

ALL = "all"
"""The row of all queries."""
HEADER = (
    "queries",
    "n",
    "recall@1 %",
    "recall@3 %",
    "recalled %",
    "foreign logs",
    "any foreign %",
    "none fits, any given %",
)


@dataclass(frozen=True)
class Figures:
    """What was found for some queries; None is what they do not say.

    Attributes:
        kind: Which queries.
        queries: How many.
        recall_at_1: Share of those that a log fits whose log is the nearest, whatever the floor.
        recall_at_3: Share of those that a log fits whose log is among the three nearest.
        recalled: Share of those that a log fits whose log is recalled.
        foreign: Other logs that are recalled for a query that a log fits, on average.
        any_foreign: Share of those that a log fits for which another is recalled.
        false_recall: Share of those that nothing fits for which something is recalled.
    """

    kind: str
    queries: int
    recall_at_1: Interval | None
    recall_at_3: Interval | None
    recalled: Interval | None
    foreign: Interval | None
    any_foreign: Interval | None
    false_recall: Interval | None

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row below `HEADER`."""
        shares = (self.recall_at_1, self.recall_at_3, self.recalled)
        return (
            self.kind,
            f"{self.queries:,}",
            *map(_share, shares),
            _mean(self.foreign),
            _share(self.any_foreign),
            _share(self.false_recall),
        )


def split(found: Sequence[Result], held_out: int | None) -> dict[str, list[Result]]:
    """Return the queries that settings may be chosen by, and those held out.

    Args:
        found: The queries, and what was found.
        held_out: Of how many queries about one is held out; all are one part by default.
    """
    if held_out is None:
        return {"all queries": list(found)}
    apart = [is_held_out(query, held_out) for query, _ in found]
    parts = {
        name: [one for one, out in zip(found, apart, strict=True) if out == is_out]
        for name, is_out in (("tuned on", False), ("held out", True))
    }
    return {name: some for name, some in parts.items() if some}


def by_kind(found: Iterable[Result], most: int) -> list[Figures]:
    """Return the figures of each kind of query, and of all.

    Args:
        found: The queries, and what was found.
        most: Most logs that were recalled for one.
    """
    kinds: dict[str, list[Result]] = {}
    for query, searched in found:
        for kind in filter(None, (query.kind, ALL)):
            kinds.setdefault(kind, []).append((query, searched))
    whole = kinds.pop(ALL, [])
    return [figures(kind, of, most) for kind, of in (*kinds.items(), (ALL, whole))]


def figures(kind: str, found: Sequence[Result], most: int) -> Figures:
    """Return the figures of some queries.

    Args:
        kind: What they are called.
        found: The queries, and what was found.
        most: Most logs that were recalled for one.
    """
    known = [(query.log, searched) for query, searched in found if query.log is not None]
    foreign = [sum(log_id != log for log_id in one.given) for log, one in known]
    return Figures(
        kind,
        len(found),
        _interval([one.nearest[:1] == (log,) for log, one in known]),
        _interval([log in one.nearest for log, one in known]),
        _interval([log in one.given for log, one in known]),
        _interval(foreign, most),
        _interval([number > 0 for number in foreign]),
        _interval([bool(one.given) for query, one in found if query.log is None]),
    )


def _interval(values: Sequence[float], most: int = 1) -> Interval | None:
    return interval(values, most=most) if values else None


def _share(found: Interval | None) -> str:
    return "-" if found is None else with_ends(found)


def _mean(found: Interval | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"

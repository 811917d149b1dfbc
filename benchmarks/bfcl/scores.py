"""Which answers are right, by BFCL's own checker, and the report of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmarks.bfcl.answers import Call, Record
from benchmarks.bfcl.cases import Case
from lag_integrations.evaluation.statistics import Interval, interval

_MODEL = "any"

HEADER = (
    "model",
    "category",
    "questions",
    "read",
    "right",
    "marks only: read",
    "marks only: right",
)
"""The columns of the report."""


@dataclass(frozen=True)
class Row:
    """How a model did in a category.

    Attributes:
        model: The model.
        category: The category, or "all".
        questions: How many were answered.
        read: Share of answers in which a call was read, as `LAGChatModel` gives them.
        right: Share of answers whose calls are right.
        marked_read: As `read`, of calls that are read by the marks of the model's format alone.
        marked_right: As `right`, of those.
    """

    model: str
    category: str
    questions: int
    read: Interval
    right: Interval
    marked_read: Interval
    marked_right: Interval

    @property
    def cells(self) -> tuple[str, ...]:
        """As text, under `HEADER`."""
        shares = (self.read, self.right, self.marked_read, self.marked_right)
        return (self.model, self.category, str(self.questions), *map(_share, shares))


def rows(cases: Sequence[Case], records: Iterable[Record]) -> list[Row]:
    """Return the rows of all models, category by category, then all categories together."""
    by_id = {case.id: case for case in cases}
    models: dict[str, dict[str, list[tuple[bool, ...]]]] = {}
    for record in records:
        if (case := by_id.get(record.id)) is None:
            continue
        scores = (
            bool(record.calls),
            is_right(case, record.calls),
            bool(record.marked),
            is_right(case, record.marked),
        )
        categories = models.setdefault(record.model, {})
        for category in (case.category, "all"):
            categories.setdefault(category, []).append(scores)
    order = [*dict.fromkeys(case.category for case in cases), "all"]
    return [
        _row(model, category, categories[category])
        for model, categories in models.items()
        for category in order
        if category in categories
    ]


def is_right(case: Case, calls: Sequence[Call]) -> bool:
    """Whether calls are right, by BFCL's AST checker."""
    if not calls:
        return False
    checker, language = _checker()
    said = [{call.name: call.args} for call in calls]
    try:
        verdict = checker.ast_checker(
            list(case.functions), said, list(case.gold), language, case.category, _MODEL
        )
    except (AttributeError, KeyError, TypeError):
        return False  # of a shape that it does not expect, as text in a list of objects
    return bool(verdict["valid"])


def _checker() -> tuple[Any, Any]:
    # All that it asks of a model is whether its names have underscores for dots; the module that
    # knows it imports the clients of every vendor.
    config = ModuleType("bfcl_eval.constants.model_config")
    known = {_MODEL: SimpleNamespace(underscore_to_dot=True)}
    config.MODEL_CONFIG_MAPPING = known  # type: ignore[attr-defined]
    sys.modules.setdefault(config.__name__, config)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval import ast_checker

    return ast_checker, Language.PYTHON


def _row(model: str, category: str, scores: Sequence[tuple[bool, ...]]) -> Row:
    shares = [interval(column) for column in zip(*scores, strict=True)]
    return Row(model, category, len(scores), *shares)


def _share(share: Interval) -> str:
    return f"{share.mean:.0%} ({share.low:.0%} to {share.high:.0%})"


def markdown(table: Sequence[Row], caption: str) -> str:
    """Return the report as Markdown."""
    lines = [
        "# Tool calls: BFCL, single turn",
        "",
        "Share of answers in which a call was read, and whose calls are right by BFCL's AST "
        "checker, each with its 95 % interval: as `LAGChatModel` gives them, and of the same texts "
        "if only the marks of the model's own tool format count.",
        "",
        f"| {' | '.join(HEADER)} |",
        f"|{'---|' * len(HEADER)}",
        *(f"| {' | '.join(row.cells)} |" for row in table),
        "",
        caption,
        "",
    ]
    return "\n".join(lines)

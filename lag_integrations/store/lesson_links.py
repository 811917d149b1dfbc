"""The links of lessons to the logs that they were made of, and what of these logs they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, select

from lag_integrations.store.schema import logs, tags
from lag_integrations.store.tags import OWN
from lag_integrations.traces.reserved_metadata import LESSON_OF, OUTDATED, QUARANTINED

_MARKS = (OWN, QUARANTINED, *OUTDATED)
"""Keys of tags without which, or with which, a lesson would have been made otherwise."""


@dataclass(frozen=True)
class Basis:
    """What a lesson rests on of a log, besides what it says: if it changes, the lesson is void.

    Attributes:
        failed: Whether the run failed.
        is_usable: Whether its outcome is one of a run that came to its end.
        marks: Key and text of its tags that restrict its recall.
    """

    failed: bool
    is_usable: bool
    marks: frozenset[tuple[str, str]]

    @property
    def is_restricted(self) -> bool:
        """Whether only the log's owner may recall it."""
        return any(key == OWN for key, _ in self.marks)


def is_lesson() -> ColumnElement[bool]:
    """Return the condition that a log is a lesson."""
    return logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == LESSON_OF))


def lessons_of(connection: Connection, ids: Sequence[str]) -> list[str]:
    """Return the ids of the lessons that were made of any of some logs."""
    found = select(tags.c.log_id).where(tags.c.key == LESSON_OF, tags.c.text.in_(ids)).distinct()
    return list(connection.execute(found).scalars())


def bases_of(connection: Connection, ids: Sequence[str]) -> dict[str, Basis]:
    """Return what lessons rest on of some logs, by id, without logs that do not exist."""
    outcomes = connection.execute(select(logs.c.id, logs.c.outcome).where(logs.c.id.in_(ids))).all()
    marks: dict[str, set[tuple[str, str]]] = {row.id: set() for row in outcomes}
    restricting = select(tags.c.log_id, tags.c.key, tags.c.text).where(
        tags.c.log_id.in_(ids), tags.c.key.in_(_MARKS)
    )
    for row in connection.execute(restricting):
        marks.setdefault(row.log_id, set()).add((row.key, row.text))
    return {
        row.id: Basis(
            row.outcome == "failure", row.outcome != "incomplete", frozenset(marks[row.id])
        )
        for row in outcomes
    }

"""Conditions on ``logs`` under which a log may be recalled."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, not_, or_, select

from lag_integrations.store.filters import Where, condition
from lag_integrations.store.lesson_links import is_lesson
from lag_integrations.store.schema import logs, tags
from lag_integrations.store.tags import OWN
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.reserved_metadata import (
    LESSON_OF,
    NOT_RECALLED,
    OUTDATED,
    QUARANTINED,
)
from lag_integrations.traces.trace import Outcome


def in_quarantine() -> ColumnElement[bool]:
    """Return the condition that a log is in quarantine."""
    return logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == QUARANTINED))


def readable_by(owner: Owner) -> ColumnElement[bool]:
    """Return the condition that everybody, or this owner, may recall a log."""
    own = select(tags.c.log_id).where(tags.c.log_id == logs.c.id, tags.c.key == OWN)
    return or_(~own.exists(), own.where(tags.c.text.in_(owner.readable_tags)).exists())


def has_outcome(outcomes: Sequence[Outcome]) -> ColumnElement[bool]:
    """Return the condition that a log has one of these outcomes.

    A lesson is no run that could succeed: where successes are asked for, unjudged ones are, too.
    """
    found = logs.c.outcome.in_(outcomes)
    if "success" not in outcomes:
        return found
    return or_(found, and_(logs.c.outcome == "unknown", is_lesson()))


def _is_as_new_as(since: float) -> ColumnElement[bool]:
    """Return the condition that a log was captured since then; of a lesson, its sources, too."""
    sources = logs.alias()
    of_older = (
        select(tags.c.log_id)
        .join(sources, sources.c.id == tags.c.text)
        .where(tags.c.key == LESSON_OF, sources.c.captured_at < since)
    )
    return and_(logs.c.captured_at >= since, logs.c.id.not_in(of_older))


def recall_conditions(
    outcomes: Sequence[Outcome], where: Where | None, owner: Owner | None, ttl: float | None
) -> dict[str, ColumnElement[bool]]:
    """Return the conditions under which logs may be recalled, by the reason why others are not.

    Args:
        outcomes: The outcomes that logs may have.
        where: A filter.
        owner: Who asks, unless the filter names a user or thread. Of unjudged runs that read
            documents, only the owner's are recalled. None recalls those of all owners.
        ttl: Most seconds since the last capture.

    Raises:
        StoreError: The filter is malformed.
    """
    filtered = None if where is None else condition(where)
    found = {
        "its outcome is not asked for": has_outcome(outcomes),
        "it harmed more often than it helped": logs.c.times_harmed <= logs.c.times_helped,
        "it is not for recall": not_(condition(NOT_RECALLED)),
        "it is in quarantine": not_(in_quarantine()),
        "a document that it used was changed": not_(condition(OUTDATED)),
    }
    if owner is not None:
        reason = "it read documents, nobody judged it, and it is of another user or thread"
        found[reason] = readable_by(owner.overridden_by(where))
    if ttl is not None:
        found["it is too old"] = _is_as_new_as(time.time() - ttl)
    if filtered is not None:
        found["the filter leaves it out"] = filtered
    return found

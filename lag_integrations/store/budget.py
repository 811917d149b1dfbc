"""Budgets of a namespace, and the eviction that keeps it within them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select, update

from lag_integrations.errors import StoreError
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import queue_removals
from lag_integrations.store.filters import condition
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import logs, segments
from lag_integrations.traces.reserved_metadata import IMPORTED, UNJUDGED

_HELP_SECONDS = 86_400.0
"""Recency that a log gains each time it helped, and loses each time it harmed."""
_SLACK = 0.005
"""Part of a budget that is freed in addition, so that not every new log evicts another."""
_GRACE = 3_600.0
"""Seconds for which older logs are evicted before a new one: nobody can have used it yet."""
_EVICTED_FIRST = {**IMPORTED, **UNJUDGED}
"""Metadata of logs that anybody may have written: they push out nothing that was captured here."""
_STEP = 200


@dataclass(frozen=True)
class Budget:
    """Limits of one namespace; None is no limit.

    Attributes:
        max_bytes: Most bytes of traces and segments. Segments are evicted first: they can be made
            again.
        max_logs: Most logs.
        ttl: Most seconds since the last capture.
    """

    max_bytes: int | None = None
    max_logs: int | None = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_logs", "ttl"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise StoreError(
                    f"{name} is {value!r}; give a number above 0, or None for no limit."
                )


@dataclass(frozen=True)
class PruneResult:
    """What was evicted.

    Attributes:
        logs: Deleted logs.
        segments: Evicted segments of logs that stay.
    """

    logs: int = 0
    segments: int = 0


class Evictor:
    """Keeps a namespace within its budget: the least recently used and least helpful go first.

    Args:
        database: The ledger's database.
        ledger: The namespace's logs.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger
        self._mine = ledger.mine

    def nbytes(self) -> tuple[int, int]:
        """Return the bytes of the traces, and of the segments."""
        of_logs = select(func.coalesce(func.sum(logs.c.bytes), 0)).where(self._mine)
        of_segments = (
            select(func.coalesce(func.sum(segments.c.bytes), 0))
            .join(logs, logs.c.id == segments.c.log_id)
            .where(self._mine)
        )
        with self._db.read() as connection:
            return (
                int(connection.execute(of_logs).scalar_one()),
                int(connection.execute(of_segments).scalar_one()),
            )

    def enforce(self, budget: Budget) -> PruneResult:
        """Evict what exceeds a budget; files and index entries are queued for removal."""
        # Two who evict at once would evict twice as much.
        with self._db.locks.hold(f"budget-{self._ledger.namespace}"):
            return self._enforce(budget)

    def _enforce(self, budget: Budget) -> PruneResult:
        deleted = freed = 0
        if budget.ttl is not None:
            old = logs.c.captured_at < time.time() - budget.ttl
            while ids := self._least_valuable(_STEP, old):
                deleted += len(self._ledger.delete([key for key, _ in ids], evicted=True))
        if budget.max_logs is not None:
            excess = self._ledger.count() - budget.max_logs
            if excess > 0:
                excess += int(budget.max_logs * _SLACK)
                ids = self._least_valuable(excess)
                deleted += len(self._ledger.delete([key for key, _ in ids], evicted=True))
        if budget.max_bytes is not None:
            of_logs, of_segments = self.nbytes()
            if of_logs + of_segments > budget.max_bytes:
                goal = int(budget.max_bytes * (1 - _SLACK))
                freed = self._free_segments(of_logs + of_segments - goal)
                deleted += self._free_logs(of_logs - goal)
        return PruneResult(deleted, freed)

    def _least_valuable(
        self, limit: int, condition: ColumnElement[bool] | None = None
    ) -> list[tuple[str, int]]:
        statement = select(logs.c.id, logs.c.bytes).where(self._mine)
        if condition is not None:
            statement = statement.where(condition)
        with self._db.read() as connection:
            rows = connection.execute(statement.order_by(*_least_valuable_first()).limit(limit))
            return [(row.id, row.bytes) for row in rows]

    def _free_logs(self, needed: int) -> int:
        """Delete logs until so many bytes of traces are free; return their number."""
        deleted = 0
        while needed > 0 and (found := self._least_valuable(_STEP)):
            chosen = []
            for key, size in found:
                if needed <= 0:
                    break
                chosen.append(key)
                needed -= size
            deleted += len(self._ledger.delete(chosen, evicted=True))
        return deleted

    def _free_segments(self, needed: int) -> int:
        """Evict segments until so many bytes are free; return their number."""
        key = (segments.c.log_id, segments.c.fingerprint, segments.c.selection, segments.c.codec)
        statement = (
            select(*key, segments.c.file, segments.c.bytes)
            .join(logs, logs.c.id == segments.c.log_id)
            .where(self._mine, segments.c.file.is_not(None))
            .order_by(*_least_valuable_first())
            .limit(_STEP)
            .with_for_update(of=segments)
        )
        freed = 0
        while needed > 0:
            with self._db.write() as connection:
                rows = connection.execute(statement).all()
                if not rows:
                    break
                for row in rows:
                    if needed <= 0:
                        break
                    this = and_(*(column == getattr(row, column.name) for column in key))
                    # The row stays, so that the worker does not make it again at once.
                    connection.execute(update(segments).where(this).values(file=None, bytes=0))
                    queue_removals(connection, self._ledger.namespace, files=[row.file])
                    needed -= row.bytes
                    freed += 1
        return freed


def _least_valuable_first() -> tuple[ColumnElement[Any], ...]:
    is_new = logs.c.captured_at > time.time() - _GRACE
    rank = case((condition(_EVICTED_FIRST), 0), (is_new, 2), else_=1)
    helped = logs.c.times_helped - logs.c.times_harmed
    return rank, logs.c.used_at + _HELP_SECONDS * helped, logs.c.id

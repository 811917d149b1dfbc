"""Outcomes of runs, and the feedback that they are for the logs recalled into these runs."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select, update

from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import logs, tags
from lag_integrations.store.tags import is_run
from lag_integrations.traces.reserved_metadata import OUTDATED, UNJUDGED, VERDICT, without
from lag_integrations.traces.trace import Outcome


class Outcomes:
    """Records the outcomes that judges and people give to logs of a namespace.

    Args:
        database: The ledger's database.
        ledger: The logs.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger

    def log_of_run(self, run_id: str) -> str | None:
        """Return the id of the log that a run was captured as; None if there is none."""
        with self._db.read() as connection:
            return connection.execute(
                select(logs.c.id)
                .join(tags, tags.c.log_id == logs.c.id)
                .where(self._ledger.mine_by_id, is_run(run_id))
                .order_by(logs.c.captured_at.desc())
                .limit(1)
            ).scalar_one_or_none()

    def set(self, key: str, outcome: Outcome) -> bool:
        """Record an outcome, unless there is a verdict; return False if there is no such log."""
        return self._set(key, outcome, verdict=False)

    def set_by_user(self, key: str, outcome: Outcome) -> bool:
        """Record a person's verdict on a log, and count it for the logs recalled into its run.

        A verdict counts once for each run: a second one on the same run replaces the first. A
        success confirms a log whose sources were said to have changed.

        Returns:
            False if there is no such log.
        """
        return self._set(key, outcome, verdict=True)

    def _set(self, key: str, outcome: Outcome, *, verdict: bool) -> bool:
        known = self._ledger.get([key]).get(key)
        if known is None:
            return False
        with self._db.write() as connection:
            # All at once: no deadlocks (PostgreSQL).
            rows = self._ledger.lock(connection, [key, *known.helped_by])
            stored = (row.trace for row in rows if row.id == key)
            trace = next((self._ledger.parse_intact(key, text) for text in stored), None)
            if trace is None:
                return False
            metadata = without(trace.metadata, *UNJUDGED)
            before = metadata.get(VERDICT)
            if verdict:
                metadata[VERDICT] = {"outcome": outcome, "run": trace.id}
                if outcome == "success":
                    metadata = without(metadata, *OUTDATED)
                if numbers := _changes(before, trace.id, outcome):
                    connection.execute(
                        update(logs)
                        .where(self._ledger.mine_by_id, logs.c.id.in_(trace.helped_by))
                        .values({name: logs.c[name] + number for name, number in numbers.items()})
                    )
            elif before is not None:
                return True
            changes = {"outcome": outcome, "metadata": metadata}
            self._ledger.replace(connection, key, trace.model_copy(update=changes))
        return True


def _changes(before: object, run_id: str, outcome: Outcome) -> dict[str, int]:
    """Return what a verdict adds to the counters, given the one before it."""
    column = {"success": "times_helped", "failure": "times_harmed"}
    numbers = Counter({column[outcome]: 1} if outcome in column else {})
    if isinstance(before, dict) and before.get("run") == run_id and before["outcome"] in column:
        numbers.subtract([column[before["outcome"]]])
    return {name: number for name, number in numbers.items() if number}

"""Outcomes of runs, as judges and people say them."""

from __future__ import annotations

from sqlalchemy import select

from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import logs, tags
from lag_integrations.store.tags import is_run
from lag_integrations.traces.reserved_metadata import (
    JUDGED,
    OUTDATED,
    UNJUDGED,
    VERDICT,
    without,
)
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
        """Record a person's verdict on a log, which no judge's replaces.

        A success confirms a log whose sources were said to have changed.

        Returns:
            False if there is no such log.
        """
        return self._set(key, outcome, verdict=True)

    def _set(self, key: str, outcome: Outcome, *, verdict: bool) -> bool:
        with self._db.write() as connection:
            rows = self._ledger.lock(connection, [key])
            trace = next((self._ledger.parse_intact(key, row.trace) for row in rows), None)
            if trace is None:
                return False
            metadata = without(trace.metadata, *UNJUDGED, *JUDGED)
            if verdict:
                metadata[VERDICT] = {"outcome": outcome, "run": trace.id}
                if outcome == "success":
                    metadata = without(metadata, *OUTDATED)
            elif VERDICT in metadata:
                return True
            if outcome in ("success", "failure"):
                metadata |= JUDGED
            changes = {"outcome": outcome, "metadata": metadata}
            self._ledger.replace(connection, key, trace.model_copy(update=changes))
        return True

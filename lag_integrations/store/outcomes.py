"""What became of runs: outcomes, and what they mean for the logs that were recalled into them."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select, update

from lag_integrations.store.database import Database
from lag_integrations.store.filters import of_run
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import logs, tags
from lag_integrations.traces.reserved_metadata import OUTDATED, UNJUDGED, VERDICT, without
from lag_integrations.traces.trace import Outcome


class Outcomes:
    """The outcomes that judges and people give to logs of a namespace.

    Args:
        database: The store's database.
        ledger: The logs.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger

    def log_of_run(self, run_id: str) -> str | None:
        """The id of the log that a run was captured as; None if there is none."""
        with self._db.read() as connection:
            return connection.execute(
                select(logs.c.id)
                .join(tags, tags.c.log_id == logs.c.id)
                .where(self._ledger.mine_by_id, of_run(run_id))
                .order_by(logs.c.captured_at.desc())
                .limit(1)
            ).scalar_one_or_none()

    def set(self, key: str, outcome: Outcome) -> bool:
        """Record an outcome, unless someone gave a verdict; false if there is no such log."""
        return self._set(key, outcome, verdict=False)

    def set_by_user(self, key: str, outcome: Outcome) -> bool:
        """Record someone's verdict on a log, and count it for the logs that were recalled into it.

        A verdict is counted once for each run; another one on the same run takes it back. A success
        confirms a log whose sources were said to have changed.

        Returns:
            False if there is no such log.
        """
        return self._set(key, outcome, verdict=True)

    def _set(self, key: str, outcome: Outcome, *, verdict: bool) -> bool:
        known = self._ledger.get([key]).get(key)
        if known is None:
            return False
        # All at once and in one order: no deadlocks (PostgreSQL).
        wanted = sorted({key, *known.helped_by})
        with self._db.write() as connection:
            rows = connection.execute(
                select(logs.c.id, logs.c.trace)
                .where(self._ledger.mine_by_id, logs.c.id.in_(wanted))
                .order_by(logs.c.id)
                .with_for_update()
            ).all()
            trace = next(
                (self._ledger.intact(key, row.trace) for row in rows if row.id == key), None
            )
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
    """What a verdict adds to the counters, after one that was given before."""
    column = {"success": "times_helped", "failure": "times_harmed"}
    numbers = Counter({column[outcome]: 1} if outcome in column else {})
    if isinstance(before, dict) and before.get("run") == run_id and before["outcome"] in column:
        numbers.subtract([column[before["outcome"]]])
    return {name: number for name, number in numbers.items() if number}

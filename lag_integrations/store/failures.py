"""Failures to derive something from a log."""

from __future__ import annotations

from sqlalchemy import Select, delete, select
from sqlalchemy.exc import IntegrityError

from lag_integrations.errors import StoreError
from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import failures, logs


class Failures:
    """Table of errors by log and task: a failed task is skipped, and holds up no other.

    Args:
        database: The ledger's database.
        ledger: The logs that they are about.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._mine = ledger.mine

    def add(self, log_id: str, task: str, error: str) -> None:
        """Record why a task failed; it is not tried again until `clear`."""
        values = {"log_id": log_id, "task": task, "error": error}
        try:
            with self._db.write() as connection:
                connection.execute(
                    self._db.upsert(failures)
                    .values(values)
                    .on_conflict_do_update(index_elements=["log_id", "task"], set_=values)
                )
        except StoreError as failure:
            if not isinstance(failure.__cause__, IntegrityError):
                raise  # else the log was deleted meanwhile

    def all(self) -> dict[tuple[str, str], str]:
        """Return errors by log id and task."""
        statement = select(failures).join(logs, logs.c.id == failures.c.log_id).where(self._mine)
        with self._db.read() as connection:
            return {(row.log_id, row.task): row.error for row in connection.execute(statement)}

    def clear(self) -> None:
        """Delete all errors, so that the tasks are tried again."""
        mine = select(logs.c.id).where(self._mine)
        with self._db.write() as connection:
            connection.execute(delete(failures).where(failures.c.log_id.in_(mine)))


def failed(task: str) -> Select[tuple[str]]:
    """Return a query for the ids of logs for which a task failed."""
    return select(failures.c.log_id).where(failures.c.task == task)

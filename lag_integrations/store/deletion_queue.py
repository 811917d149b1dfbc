"""What was deleted in the ledger, and still has to go from index and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from lag_integrations.store.database import Database
from lag_integrations.store.schema import embeddings, removals


@dataclass(frozen=True)
class Removal:
    """Something outside of the database that has to go.

    Attributes:
        id: Of this entry.
        log_id: A log whose index entry has to go, or None.
        file: A segment file that has to go, or None.
    """

    id: int
    log_id: str | None
    file: str | None


class DeletionQueue:
    """The durable queue of removals of one namespace: a crash cannot leave anything behind.

    Args:
        database: Where it is kept.
        namespace: The tenant.
    """

    def __init__(self, database: Database, namespace: str) -> None:
        self._db = database
        self._namespace = namespace

    def next(self, limit: int, *, but: Sequence[int] = ()) -> list[Removal]:
        """What has to go, oldest first, but for some entries."""
        statement = (
            select(removals.c.id, removals.c.log_id, removals.c.file)
            .where(removals.c.namespace == self._namespace, removals.c.id.not_in(but))
            .order_by(removals.c.id)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [Removal(row.id, row.log_id, row.file) for row in connection.execute(statement)]

    def done(self, gone: Sequence[Removal]) -> None:
        """Record that these are gone; a log that was added again meanwhile is indexed again.

        The caller holds the lock ``merge`` of the namespace.
        """
        if not gone:
            return
        ids = [removal.log_id for removal in gone if removal.log_id is not None]
        with self._db.write() as connection:
            connection.execute(
                delete(removals).where(removals.c.id.in_([removal.id for removal in gone]))
            )
            connection.execute(
                update(embeddings).where(embeddings.c.log_id.in_(ids)).values(indexed_in=None)
            )

    def files(self, names: Sequence[str]) -> set[str]:
        """Those of the files that have to go, in any namespace."""
        with self._db.read() as connection:
            rows = connection.execute(select(removals.c.file).where(removals.c.file.in_(names)))
            return {row.file for row in rows}

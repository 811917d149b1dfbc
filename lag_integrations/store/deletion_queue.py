"""The queue of files and index entries that are still to be removed for deleted logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from lag_integrations.store.database import Database
from lag_integrations.store.schema import embeddings, removals


@dataclass(frozen=True)
class Removal:
    """An entry of the queue.

    Attributes:
        id: Id of this entry.
        log_id: The log whose index entries are to be removed, or None.
        file: The segment file that is to be removed, or None.
    """

    id: int
    log_id: str | None
    file: str | None


def queue_removals(
    connection: Connection,
    namespace: str,
    *,
    log_ids: Sequence[str] = (),
    files: Sequence[str] = (),
) -> None:
    """Queue index entries and files for removal, within the transaction that deletes their logs.

    Args:
        connection: The transaction.
        namespace: The tenant.
        log_ids: The logs whose index entries are to be removed.
        files: The segment files that are to be removed.
    """
    rows = [{"namespace": namespace, "log_id": log_id, "file": None} for log_id in log_ids]
    rows += [{"namespace": namespace, "log_id": None, "file": file} for file in files]
    if rows:
        connection.execute(insert(removals), rows)


class DeletionQueue:
    """The durable queue of one namespace: what a crash interrupts is removed later.

    Args:
        database: The ledger's database.
        namespace: The tenant.
    """

    def __init__(self, database: Database, namespace: str) -> None:
        self._db = database
        self._namespace = namespace

    def next(self, limit: int, *, excluding: Sequence[int] = ()) -> list[Removal]:
        """Return the oldest entries, without those of some ids."""
        statement = (
            select(removals.c.id, removals.c.log_id, removals.c.file)
            .where(removals.c.namespace == self._namespace, removals.c.id.not_in(excluding))
            .order_by(removals.c.id)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [Removal(row.id, row.log_id, row.file) for row in connection.execute(statement)]

    def done(self, gone: Sequence[Removal]) -> None:
        """Drop entries that were carried out; a log that was added again is indexed again.

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
        """Return those of the files that are queued, in any namespace."""
        with self._db.read() as connection:
            rows = connection.execute(select(removals.c.file).where(removals.c.file.in_(names)))
            return {row.file for row in rows}

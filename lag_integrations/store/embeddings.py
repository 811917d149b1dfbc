"""The embeddings of one namespace's logs, a row for each search key, and what the index holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy import (
    ColumnElement,
    and_,
    delete,
    func,
    insert,
    not_,
    select,
    tuple_,
    union_all,
    update,
)

from lag_integrations.errors import EmbedderMismatchError, StoreError
from lag_integrations.store.database import Database
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.failures import Failures, failed
from lag_integrations.store.ledger import Ledger, in_quarantine
from lag_integrations.store.schema import embeddings, logs, settings
from lag_integrations.store.store_metadata import EMBEDDER, generation_of
from lag_integrations.store.time_limits import lift_time_limits
from lag_integrations.traces.trace import Trace

EMBED = "embed"
"""The task under which a failure to embed is recorded."""

Entry = tuple[str, int]
"""A search key: the id of its log, and its number among the log's."""


class EmbeddingTable:
    """Embeddings, kept in the ledger, so that the index can be made again without the embedder.

    Args:
        database: Where they are kept.
        ledger: The logs that they are derived from.
        failures: Where damaged traces are noted.
    """

    def __init__(self, database: Database, ledger: Ledger, failures: Failures) -> None:
        self._db = database
        self._ledger = ledger
        self._failures = failures
        self._namespace = ledger.namespace
        self._mine = logs.c.namespace == ledger.namespace
        self._mine_by_id = logs.c.namespace.concat("") == ledger.namespace  # see Ledger

    def missing(self, limit: int | None = None) -> list[tuple[str, Trace]]:
        """Logs that wait for their embedding, oldest first; none that failed or is quarantined."""
        statement = (
            select(logs.c.id, logs.c.trace)
            .where(self._waiting)
            .order_by(logs.c.captured_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            rows = connection.execute(statement).all()
        found = []
        for row in rows:
            trace = self._ledger.intact(row.id, row.trace)
            if trace is None:
                self._failures.add(row.id, EMBED, "The stored trace is damaged.")
            else:
                found.append((row.id, trace))
        return found

    def count_missing(self, *, limit: int | None = None) -> int:
        """Number of logs that wait for their embedding, counted up to a limit."""
        return self._ledger.count(self._waiting, limit=limit)

    @property
    def _waiting(self) -> ColumnElement[bool]:
        return and_(
            self._mine,
            logs.c.embedded.is_(False),
            logs.c.id.not_in(failed(EMBED)),
            not_(in_quarantine()),
        )

    def count_logs(self) -> int:
        """Number of logs that are embedded."""
        return self._ledger.count(self._mine & logs.c.embedded)

    def add(self, entries: Sequence[Entry], vectors: Vectors, generation: str) -> None:
        """Record all embeddings of some logs, fp32 ``[entries, dimension]``.

        Logs that were deleted meanwhile are left out.

        Raises:
            EmbedderMismatchError: The store has been given another embedder since.
        """
        ids = list({log_id for log_id, _ in entries})
        with self._db.write() as connection:
            known = connection.execute(select(settings.c.value).where(settings.c.key == EMBEDDER))
            if generation_of(known.scalar_one_or_none()) != generation:
                raise EmbedderMismatchError(
                    "The store was given another embedder by another process; open it again."
                )
            alive = {
                row.id
                for row in connection.execute(
                    select(logs.c.id)
                    .where(self._mine_by_id, logs.c.id.in_(ids))
                    .order_by(logs.c.id)  # in one order: no deadlocks (PostgreSQL)
                    .with_for_update()
                )
            }
            rows = [
                {
                    "log_id": log_id,
                    "key": key,
                    "namespace": self._namespace,
                    "indexed_in": None,
                    "vector": np.asarray(vector, dtype="<f4").tobytes(),
                }
                for (log_id, key), vector in zip(entries, vectors, strict=True)
                if log_id in alive
            ]
            if rows:
                connection.execute(delete(embeddings).where(embeddings.c.log_id.in_(alive)))
                connection.execute(insert(embeddings), rows)
                connection.execute(update(logs).where(logs.c.id.in_(alive)).values(embedded=True))

    def vectors(
        self,
        allowed: ColumnElement[bool] | None = None,
        *,
        outside: str | None = None,
        inside: str | None = None,
        ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> tuple[list[Entry], Vectors]:
        """Return entries and their embeddings, fp32 ``[entries, dimension]``.

        Args:
            allowed: A condition on the logs.
            outside: Only those that this index does not hold (see `Index.identity`).
            inside: Only those that this index holds.
            ids: Only those of these logs.
            limit: Most to return.

        Raises:
            StoreError: They are not all of one dimension.
        """
        statement = select(embeddings.c.log_id, embeddings.c.key, embeddings.c.vector).where(
            self._held(outside, inside, by_id=allowed is not None or ids is not None)
        )
        if ids is not None:
            statement = statement.where(embeddings.c.log_id.in_(ids))
        if allowed is not None:
            statement = statement.join(logs, logs.c.id == embeddings.c.log_id).where(allowed)
        with self._db.read() as connection:
            rows = connection.execute(statement.limit(limit)).all()
        if not rows:
            return [], np.zeros((0, 0), dtype=np.float32)
        if len({len(row.vector) for row in rows}) > 1:
            raise StoreError(
                "The store has embeddings of several sizes; `kvlog reindex` embeds all traces anew."
            )
        data = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
        return [(row.log_id, row.key) for row in rows], data.reshape(len(rows), -1)

    def tasks(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return the embedding of each log's task, which is the first of its keys."""
        entries, vectors = self.vectors(ids=ids)
        first = dict(zip(entries, vectors, strict=True))
        return {log_id: first[log_id, key] for log_id, key in sorted(first, reverse=True)}

    def count(
        self,
        *,
        outside: str | None = None,
        inside: str | None = None,
        limit: int | None = None,
    ) -> int:
        """Number of entries (that an index does not hold, or holds), up to a limit."""
        statement = select(embeddings.c.log_id).where(self._held(outside, inside)).limit(limit)
        with self._db.read() as connection:
            return int(
                connection.execute(
                    select(func.count()).select_from(statement.subquery())
                ).scalar_one()
            )

    def mark_indexed(self, entries: Sequence[Entry], identity: str) -> None:
        """Record that an index holds these entries."""
        these = tuple_(embeddings.c.log_id, embeddings.c.key).in_(entries)
        with self._db.write() as connection:
            connection.execute(update(embeddings).where(these).values(indexed_in=identity))

    def adopt(self, record: str) -> None:
        """Make an embedder the store's, and have every log of all namespaces embedded again."""
        with self._db.write() as connection:
            lift_time_limits(connection)
            connection.execute(delete(embeddings))
            connection.execute(update(logs).values(embedded=False))
            connection.execute(
                self._db.upsert(settings)
                .values(key=EMBEDDER, value=record)
                .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": record})
            )

    def _held(
        self, outside: str | None, inside: str | None, *, by_id: bool = False
    ) -> ColumnElement[bool]:
        """A condition on embeddings: of this namespace, outside or inside of an index.

        Written so that the database's own index finds the few that are outside.
        """
        mine = embeddings.c.namespace == self._namespace
        if outside is not None:
            other = embeddings.alias()
            column = other.c.indexed_in
            parts = (
                select(other.c.log_id).where(other.c.namespace == self._namespace, part)
                for part in (column.is_(None), column < outside, column > outside)
            )
            return embeddings.c.log_id.in_(union_all(*parts))
        if inside is not None:
            return mine & (embeddings.c.indexed_in == inside)
        # As in Ledger: another condition finds them sooner than the namespace.
        return embeddings.c.namespace.concat("") == self._namespace if by_id else mine

"""The embeddings of one namespace's logs: one for each search key."""

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
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.recall_conditions import in_quarantine
from lag_integrations.store.schema import embeddings, logs, settings
from lag_integrations.store.store_metadata import EMBEDDER, generation_of, put_setting
from lag_integrations.store.time_limits import lift_time_limits
from lag_integrations.traces.trace import Trace

EMBED = "embed"
"""Task under which a failure to embed is recorded."""

Entry = tuple[str, int]
"""A search key: the id of its log, and its number among the keys of the log."""


class EmbeddingTable:
    """Table of embeddings in the ledger, from which the index is rebuilt without the embedder.

    Args:
        database: The ledger's database.
        ledger: The logs that they are derived from.
        failures: Where damaged traces are recorded.
    """

    def __init__(self, database: Database, ledger: Ledger, failures: Failures) -> None:
        self._db = database
        self._ledger = ledger
        self._failures = failures
        self._namespace = ledger.namespace

    def missing(self, limit: int | None = None) -> list[tuple[str, Trace]]:
        """Return logs without embeddings, oldest first, unless they failed or are quarantined."""
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
            trace = self._ledger.parse_intact(row.id, row.trace)
            if trace is None:
                self._failures.add(row.id, EMBED, "The stored trace is damaged.")
            else:
                found.append((row.id, trace))
        return found

    def count_missing(self, *, limit: int | None = None) -> int:
        """Count the logs that `missing` returns, up to a limit."""
        return self._ledger.count(self._waiting, limit=limit)

    @property
    def _waiting(self) -> ColumnElement[bool]:
        return and_(
            self._ledger.mine,
            logs.c.embedded.is_(False),
            logs.c.id.not_in(failed(EMBED)),
            not_(in_quarantine()),
        )

    def count_logs(self) -> int:
        """Count the logs that have embeddings."""
        return self._ledger.count(self._ledger.mine & logs.c.embedded)

    def add(self, entries: Sequence[Entry], vectors: Vectors, generation: str) -> None:
        """Store all embeddings of some logs, fp32 ``[entries, dimension]``.

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
            alive = set(self._ledger.lock_ids(connection, ids))
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
            outside: Only those that are not in this index (see `Index.identity`).
            inside: Only those that are in this index.
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
        """Return the embedding of each log's task: its first key."""
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
        """Count entries, as of `vectors`, up to a limit."""
        statement = select(embeddings.c.log_id).where(self._held(outside, inside)).limit(limit)
        with self._db.read() as connection:
            return int(
                connection.execute(
                    select(func.count()).select_from(statement.subquery())
                ).scalar_one()
            )

    def mark_indexed(self, entries: Sequence[Entry], identity: str) -> None:
        """Record that entries are in an index."""
        these = tuple_(embeddings.c.log_id, embeddings.c.key).in_(entries)
        with self._db.write() as connection:
            connection.execute(update(embeddings).where(these).values(indexed_in=identity))

    def adopt(self, record: str) -> None:
        """Set the store's embedder, and have every log of all namespaces embedded again."""
        with self._db.write() as connection:
            lift_time_limits(connection)
            connection.execute(delete(embeddings))
            connection.execute(update(logs).values(embedded=False))
            put_setting(self._db, connection, EMBEDDER, record)

    def _held(
        self, outside: str | None, inside: str | None, *, by_id: bool = False
    ) -> ColumnElement[bool]:
        """Return the condition that embeddings of this namespace are outside or in an index.

        It is written so that the database's own index finds the few that are outside.
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
        # As `Ledger.mine_by_id`: another condition finds them sooner than the namespace.
        return embeddings.c.namespace.concat("") == self._namespace if by_id else mine

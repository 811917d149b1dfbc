"""The embeddings of one namespace's logs, and which of them the index holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sqlalchemy import ColumnElement, delete, func, insert, select, update

from lag_integrations.store.database import Database
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.failures import Failures, failed
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.schema import embeddings, logs, settings
from lag_integrations.trace import Trace

EMBED = "embed"
"""The task under which a failure to embed is recorded."""


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
        """Logs that have no embedding yet, oldest first; failed and damaged ones are left out."""
        statement = (
            select(logs.c.id, logs.c.trace)
            .where(self._mine, logs.c.embedded.is_(False), logs.c.id.not_in(failed(EMBED)))
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
        waiting = self._mine & logs.c.embedded.is_(False) & logs.c.id.not_in(failed(EMBED))
        return self._ledger.count(waiting, limit=limit)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Record embeddings, fp32 ``[logs, dimension]``; logs deleted meanwhile are left out."""
        with self._db.write() as connection:
            alive = {
                row.id
                for row in connection.execute(
                    select(logs.c.id).where(self._mine_by_id, logs.c.id.in_(ids)).with_for_update()
                )
            }
            rows = [
                {
                    "log_id": key,
                    "namespace": self._namespace,
                    "merged": False,
                    "vector": np.asarray(vector, dtype="<f4").tobytes(),
                }
                for key, vector in zip(ids, vectors, strict=True)
                if key in alive
            ]
            if rows:
                connection.execute(delete(embeddings).where(embeddings.c.log_id.in_(alive)))
                connection.execute(insert(embeddings), rows)
                connection.execute(update(logs).where(logs.c.id.in_(alive)).values(embedded=True))

    def vectors(
        self,
        allowed: ColumnElement[bool] | None = None,
        *,
        merged: bool | None = None,
        ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> tuple[list[str], Vectors]:
        """Ids and embeddings, fp32 ``[logs, dimension]``.

        Args:
            allowed: A condition on the logs.
            merged: Only those that the index holds, or does not hold.
            ids: Only these.
            limit: Most to give.
        """
        namespace: ColumnElement[str] = embeddings.c.namespace
        if allowed is not None and merged is None:
            namespace = namespace.concat("")  # the condition finds them sooner, see Ledger
        statement = select(embeddings.c.log_id, embeddings.c.vector).where(
            namespace == self._namespace
        )
        if merged is not None:
            statement = statement.where(embeddings.c.merged.is_(merged))
        if ids is not None:
            statement = statement.where(embeddings.c.log_id.in_(ids))
        if allowed is not None:
            statement = statement.join(logs, logs.c.id == embeddings.c.log_id).where(allowed)
        with self._db.read() as connection:
            rows = connection.execute(statement.limit(limit)).all()
        if not rows:
            return [], np.zeros((0, 0), dtype=np.float32)
        data = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
        return [row.log_id for row in rows], data.reshape(len(rows), -1)

    def count(self, *, merged: bool | None = None, limit: int | None = None) -> int:
        """Number of embeddings (that the index holds, or does not hold), up to a limit."""
        mine = embeddings.c.namespace == self._namespace
        statement = select(embeddings.c.log_id).where(mine).limit(limit)
        if merged is not None:
            statement = statement.where(embeddings.c.merged.is_(merged))
        with self._db.read() as connection:
            return int(
                connection.execute(
                    select(func.count()).select_from(statement.subquery())
                ).scalar_one()
            )

    def mark_merged(self, ids: Sequence[str]) -> None:
        """Record that the index holds these logs."""
        with self._db.write() as connection:
            connection.execute(
                update(embeddings).where(embeddings.c.log_id.in_(ids)).values(merged=True)
            )

    def known_index(self) -> str | None:
        """Which index it is that holds the merged logs, as far as is known."""
        with self._db.read() as connection:
            return connection.execute(
                select(settings.c.value).where(settings.c.key == f"index/{self._namespace}")
            ).scalar_one_or_none()

    def expect_index(self, identity: str) -> bool:
        """Note which index it is that holds the merged logs; False if that was another one.

        Another one is empty, as far as anyone knows: no log counts as merged any more.
        """
        if self.known_index() == identity:
            return True
        key = f"index/{self._namespace}"
        with self._db.write() as connection:
            connection.execute(
                self._db.upsert(settings)
                .values(key=key, value=identity)
                .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": identity})
            )
            connection.execute(
                update(embeddings)
                .where(embeddings.c.namespace == self._namespace)
                .values(merged=False)
            )
        return False

    def forget_all(self) -> None:
        """Have every log embedded again, in all namespaces: a store has one embedder."""
        with self._db.write() as connection:
            connection.execute(delete(embeddings))
            connection.execute(update(logs).values(embedded=False))
            connection.execute(delete(settings).where(settings.c.key.startswith("index/")))

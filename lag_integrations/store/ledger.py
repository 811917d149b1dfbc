"""The ledger: every captured trace, and what has been derived from it, in SQLite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import DatabaseError

from lag_integrations.errors import StoreError
from lag_integrations.trace import Trace

SCHEMA_VERSION = "1"

_metadata = MetaData()
_logs = Table(
    "logs",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("namespace", String(64), nullable=False, index=True),
    Column("content_hash", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("trace", Text, nullable=False),
    Column("captured_at", DateTime(timezone=True), nullable=False),
    Column("times_seen", Integer, nullable=False, default=1),
    Column("indexed", Boolean, nullable=False, default=False, index=True),
    Column("error", Text),
)
_segments = Table(
    "segments",
    _metadata,
    Column("log_id", String(32), ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("selection", String(64), primary_key=True),
    Column("file", Text, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
)
_models = Table(
    "models",
    _metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("parts", Text, nullable=False),
)
_settings = Table(
    "settings",
    _metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)


@dataclass(frozen=True)
class LogRow:
    """A log as the ledger holds it."""

    id: str
    trace: Trace


def log_id(namespace: str, trace: Trace) -> str:
    """Id of a trace's log: equal content in one namespace is one log."""
    return hashlib.sha256(f"{namespace}\n{trace.content_hash}".encode()).hexdigest()[:32]


class Ledger:
    """Durable record of logs. Every method is one transaction; methods are thread safe.

    Args:
        path: SQLite file; made if it does not exist.

    Raises:
        StoreError: The file is no ledger, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine: Engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": 30},
            hide_parameters=True,  # they are traces, and would stand in error messages
        )
        event.listen(self._engine, "connect", _configure)
        try:
            _metadata.create_all(self._engine)
            version = self.setting("schema_version", SCHEMA_VERSION)
        except DatabaseError as error:
            self._engine.dispose()
            raise StoreError(
                f"{path} cannot be opened as a log store's ledger ({error.orig}). "
                "Give an empty folder, or restore the file from a backup."
            ) from error
        if version != SCHEMA_VERSION:
            self._engine.dispose()
            raise StoreError(
                f"{path} was written with schema version {version}; this version of "
                f"lag_integrations reads version {SCHEMA_VERSION}. Upgrade lag_integrations."
            )

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def setting(self, key: str, default: str) -> str:
        """A setting of the store; the first caller's default is what is recorded."""
        with self._write() as connection:
            connection.execute(
                upsert(_settings).values(key=key, value=default).on_conflict_do_nothing()
            )
            value = connection.execute(
                select(_settings.c.value).where(_settings.c.key == key)
            ).scalar_one()
        return str(value)

    def add(self, namespace: str, trace: Trace) -> str:
        """Record a trace durably and return its log id.

        A trace seen before is counted, and takes the newer outcome unless that is unknown.
        """
        key = log_id(namespace, trace)
        statement = upsert(_logs).values(
            id=key,
            namespace=namespace,
            content_hash=trace.content_hash,
            outcome=trace.outcome,
            trace=trace.to_json(),
            captured_at=datetime.now(timezone.utc),
            times_seen=1,
            indexed=False,
        )
        with self._write() as connection:
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[_logs.c.id], set_={"times_seen": _logs.c.times_seen + 1}
                )
            )
            if trace.outcome != "unknown":
                connection.execute(
                    update(_logs)
                    .where(_logs.c.id == key, _logs.c.outcome != trace.outcome)
                    .values(outcome=trace.outcome, trace=trace.to_json(), indexed=False)
                )
        return key

    def get(self, namespace: str, ids: Sequence[str]) -> dict[str, Trace]:
        """The traces of logs, by id; ids of other namespaces are not found."""
        statement = select(_logs.c.id, _logs.c.trace).where(
            _logs.c.namespace == namespace, _logs.c.id.in_(ids)
        )
        with self._engine.connect() as connection:
            return {row.id: Trace.from_json(row.trace) for row in connection.execute(statement)}

    def count_indexed(self, namespace: str) -> int:
        """Number of logs that the index should hold."""
        statement = select(func.count()).where(
            _logs.c.namespace == namespace, _logs.c.indexed.is_(True)
        )
        with self._engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())

    def forget_index(self, namespace: str) -> None:
        """Have every log embedded again."""
        with self._write() as connection:
            connection.execute(
                update(_logs).where(_logs.c.namespace == namespace).values(indexed=False)
            )

    def not_indexed(self, namespace: str, limit: int | None = None) -> list[LogRow]:
        """Logs whose embedding is not in the index yet, oldest first; failed ones are left out."""
        statement = (
            select(_logs.c.id, _logs.c.trace)
            .where(
                _logs.c.namespace == namespace, _logs.c.indexed.is_(False), _logs.c.error.is_(None)
            )
            .order_by(_logs.c.captured_at)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [
                LogRow(row.id, Trace.from_json(row.trace)) for row in connection.execute(statement)
            ]

    def without_segment(
        self,
        namespace: str,
        fingerprint: str,
        selection: str,
        outcomes: Sequence[str],
        limit: int | None = None,
    ) -> list[str]:
        """Ids of logs that a model has not encoded yet, oldest first; failed ones are left out."""
        encoded = select(_segments.c.log_id).where(
            _segments.c.fingerprint == fingerprint, _segments.c.selection == selection
        )
        statement = (
            select(_logs.c.id)
            .where(
                _logs.c.namespace == namespace,
                _logs.c.outcome.in_(outcomes),
                _logs.c.error.is_(None),
                _logs.c.id.not_in(encoded),
            )
            .order_by(_logs.c.captured_at)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [row.id for row in connection.execute(statement)]

    def mark_indexed(self, ids: Sequence[str]) -> None:
        """Record that the index holds these logs."""
        with self._write() as connection:
            connection.execute(update(_logs).where(_logs.c.id.in_(ids)).values(indexed=True))

    def mark_failed(self, key: str, error: str) -> None:
        """Record why a log could not be derived; it is not tried again until `clear_failures`."""
        with self._write() as connection:
            connection.execute(update(_logs).where(_logs.c.id == key).values(error=error))

    def failures(self, namespace: str) -> dict[str, str]:
        """Errors by log id."""
        statement = select(_logs.c.id, _logs.c.error).where(
            _logs.c.namespace == namespace, _logs.c.error.is_not(None)
        )
        with self._engine.connect() as connection:
            return {row.id: row.error for row in connection.execute(statement)}

    def clear_failures(self, namespace: str) -> None:
        """Forget errors, so that the logs are tried again."""
        with self._write() as connection:
            connection.execute(
                update(_logs).where(_logs.c.namespace == namespace).values(error=None)
            )

    def add_segment(
        self, key: str, fingerprint: str, selection: str, *, file: str, tokens: int, size: int
    ) -> None:
        """Record a segment file of a log."""
        values = {"file": file, "tokens": tokens, "bytes": size}
        statement = upsert(_segments).values(
            log_id=key, fingerprint=fingerprint, selection=selection, **values
        )
        with self._write() as connection:
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=["log_id", "fingerprint", "selection"], set_=values
                )
            )

    def remove_segment(self, key: str, fingerprint: str, selection: str) -> None:
        """Forget a segment, so that it is encoded again."""
        with self._write() as connection:
            connection.execute(
                delete(_segments).where(
                    _segments.c.log_id == key,
                    _segments.c.fingerprint == fingerprint,
                    _segments.c.selection == selection,
                )
            )

    def segment_file(self, key: str, fingerprint: str, selection: str) -> str | None:
        """Relative path of a segment's file, None if there is no such segment."""
        statement = select(_segments.c.file).where(
            _segments.c.log_id == key,
            _segments.c.fingerprint == fingerprint,
            _segments.c.selection == selection,
        )
        with self._engine.connect() as connection:
            return connection.execute(statement).scalar_one_or_none()

    def add_model(self, fingerprint: str, parts: str) -> None:
        """Remember a model's fingerprint parts, to say later in what another model differs."""
        with self._write() as connection:
            connection.execute(
                upsert(_models)
                .values(fingerprint=fingerprint, parts=parts)
                .on_conflict_do_nothing()
            )

    def models(self) -> dict[str, str]:
        """Fingerprint parts, as JSON, by fingerprint id."""
        with self._engine.connect() as connection:
            return {row.fingerprint: row.parts for row in connection.execute(select(_models))}

    @contextmanager
    def _write(self) -> Iterator[Any]:
        with self._engine.begin() as connection:
            yield connection


def _configure(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what add() returned survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()

"""The ledger: every captured trace of one namespace, and what becomes of it."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    func,
    insert,
    not_,
    select,
    update,
)

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.store.database import Database
from lag_integrations.store.filters import RUN, Where, condition, run_row, tag_rows
from lag_integrations.store.schema import embeddings, logs, removals, segments, tags
from lag_integrations.trace import Outcome, Trace

logger = logging.getLogger(__name__)

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHUNK = 500
"""Rows a transaction: others get their turn, and databases limit the number of parameters."""
NOT_RECALLED = {"lag_recall": False}
"""Metadata of a trace that is kept, but never recalled, whatever its outcome."""
_RUNS = 100
"""Runs of the same content by which a log is found: the latest."""
VERDICT = "verdict"
"""Metadata of a log on which someone gave a verdict: the outcome, and of which run."""
COUNTERS = ("captured_at", "times_seen", "times_recalled", "times_helped", "times_harmed")


@dataclass(frozen=True)
class LogInfo:
    """A log as the ledger holds it, with its counters.

    Attributes:
        id: Log id.
        trace: The run.
        captured_at: When it was captured last, in Unix seconds.
        times_seen: How often the same run was captured.
        times_recalled: How often it was recalled.
        times_helped: How often it was said to have helped.
        times_harmed: How often it was said to have harmed.
        state: ``captured``, ``embedded`` (can be recalled) or ``indexed`` (is in Chroma too).
        segments: Number of stored segments.
        bytes: Bytes of the trace and its segments.
    """

    id: str
    trace: Trace
    captured_at: float
    times_seen: int
    times_recalled: int
    times_helped: int
    times_harmed: int
    state: str
    segments: int
    bytes: int


def checked_namespace(name: object) -> str:
    """The name, if it is one.

    Raises:
        StoreError: It is not a valid namespace.
    """
    if not isinstance(name, str) or not _NAMESPACE.fullmatch(name):
        raise StoreError(
            f"{str(name)[:80]!r} is not a valid namespace. Use 1 to 64 letters, digits, "
            "'.', '_' or '-', beginning with a letter or digit."
        )
    return name


def log_id(namespace: str, trace: Trace) -> str:
    """Id of a trace's log: equal content in one namespace is one log."""
    return hashlib.sha256(f"{namespace}\n{trace.content_hash}".encode()).hexdigest()[:32]


def _content(trace: Trace) -> dict[str, Any]:
    text = trace.to_json()
    return {"outcome": trace.outcome, "trace": text, "bytes": len(text.encode())}


class Ledger:
    """Durable record of one namespace's logs. Methods are transactions, and thread safe.

    Args:
        database: Where it is kept.
        namespace: The tenant; no method sees another's logs.
        ttl: Seconds after which a log is no longer recalled, from its last capture.
    """

    def __init__(self, database: Database, namespace: str, ttl: float | None = None) -> None:
        self._db = database
        self.namespace = checked_namespace(namespace)
        self._ttl = ttl
        self._mine = logs.c.namespace == self.namespace
        # An expression: SQLite would rather go through all of a namespace than look for ids.
        self.mine_by_id = logs.c.namespace.concat("") == self.namespace

    def add(self, traces: Sequence[Trace]) -> list[str]:
        """Record traces durably, and return their log ids.

        A run captured before is counted. What is newer is kept, but for an unknown outcome, and
        for any outcome of a log on which someone gave a verdict.
        """
        ids = [log_id(self.namespace, trace) for trace in traces]
        now = time.time()
        times = [now + number * 1e-6 for number in range(len(ids))]  # they keep their order
        # In one order: otherwise those who add the same logs could deadlock (PostgreSQL).
        ordered = sorted(zip(ids, times, traces, strict=True), key=lambda item: item[:2])
        for start in range(0, len(ordered), _CHUNK):
            with self._db.write() as connection:
                for key, captured_at, trace in ordered[start : start + _CHUNK]:
                    self._add(connection, key, trace, captured_at)
        return ids

    def _add(self, connection: Connection, key: str, trace: Trace, now: float) -> None:
        seen = connection.execute(
            self._db.upsert(logs)
            .values(
                id=key,
                namespace=self.namespace,
                content_hash=trace.content_hash,
                captured_at=now,
                used_at=now,
                times_seen=1,
                times_recalled=0,
                times_helped=0,
                times_harmed=0,
                embedded=False,
                **_content(trace),
            )
            .on_conflict_do_update(
                index_elements=[logs.c.id],
                set_={"times_seen": logs.c.times_seen + 1, "captured_at": now, "used_at": now},
            )
            .returning(logs.c.times_seen)
        ).one()
        rows = [run_row(key, trace.id, seen.times_seen)]
        if seen.times_seen > 1:
            self.replace(connection, key, self._with_known_outcome(connection, key, trace))
            old = tags.c.position <= seen.times_seen - _RUNS
            connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key == RUN, old))
        else:
            rows += tag_rows(key, trace.metadata)
        connection.execute(insert(tags), rows)

    def _with_known_outcome(self, connection: Connection, key: str, trace: Trace) -> Trace:
        row = connection.execute(select(logs.c.outcome, logs.c.trace).where(logs.c.id == key)).one()
        known = self.intact(key, row.trace)
        changes: dict[str, Any] = {}
        if known is not None and VERDICT in known.metadata:
            changes["metadata"] = {**trace.metadata, VERDICT: known.metadata[VERDICT]}
        if changes or trace.outcome == "unknown":
            changes["outcome"] = row.outcome
        return trace.model_copy(update=changes)

    def replace(self, connection: Connection, key: str, trace: Trace) -> None:
        """Put a trace of the same content in the place of another, within a transaction."""
        connection.execute(update(logs).where(logs.c.id == key).values(_content(trace)))
        connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key != RUN))
        if rows := tag_rows(key, trace.metadata):
            connection.execute(insert(tags), rows)

    def get(self, ids: Sequence[str]) -> dict[str, Trace]:
        """The traces of logs, by id; unknown ids, and other namespaces', are not found.

        A trace that does not fit its own hash any more is not given, and a warning is logged.
        """
        found: dict[str, Trace] = {}
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace).where(self.mine_by_id, logs.c.id.in_(chunk))
                ).all()
            for row in rows:
                trace = self.intact(row.id, row.trace)
                if trace is None:
                    logger.warning("The trace of log %s is damaged; it is left out.", row.id)
                else:
                    found[row.id] = trace
        return found

    def having(self, where: Where, *, limit: int | None = None) -> dict[str, Trace]:
        """The traces of logs with such metadata, by id, last captured first; no damaged ones.

        Raises:
            StoreError: The filter is malformed.
        """
        with self._db.read() as connection:
            rows = connection.execute(
                select(logs.c.id, logs.c.trace)
                .where(self.mine_by_id, condition(where))
                .order_by(logs.c.captured_at.desc(), logs.c.id)
                .limit(limit)
            ).all()
        found = ((row.id, self.intact(row.id, row.trace)) for row in rows)
        return {key: trace for key, trace in found if trace is not None}

    def values(self, key: str) -> list[str]:
        """The different texts that logs have under a metadata key."""
        with self._db.read() as connection:
            rows = connection.execute(
                select(tags.c.text)
                .distinct()
                .join(logs, logs.c.id == tags.c.log_id)
                .where(tags.c.key == key, tags.c.text.is_not(None), self.mine_by_id)
            )
            return [row.text for row in rows]

    def intact(self, key: str, text: str) -> Trace | None:
        """A stored trace, if it is the one that the id was made from."""
        try:
            trace = Trace.from_json(text)
        except TraceError:
            return None
        return trace if log_id(self.namespace, trace) == key else None

    def recallable(
        self, outcomes: Sequence[Outcome], where: Where | None = None
    ) -> ColumnElement[bool]:
        """The condition under which logs may be recalled: outcome, age, feedback and filter.

        A log that was said to harm more often than to help is not recalled.

        Raises:
            StoreError: The filter is malformed.
        """
        parts = [
            self.mine_by_id,
            logs.c.outcome.in_(outcomes),
            logs.c.times_harmed <= logs.c.times_helped,
            not_(condition(NOT_RECALLED)),
        ]
        if self._ttl is not None:
            parts.append(logs.c.captured_at >= time.time() - self._ttl)
        if where is not None:
            parts.append(condition(where))
        return and_(*parts)

    def keep_if(self, ids: Sequence[str], allowed: ColumnElement[bool]) -> set[str]:
        """Those of the ids that a condition allows."""
        kept: set[str] = set()
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(select(logs.c.id).where(logs.c.id.in_(chunk), allowed))
                kept.update(row.id for row in rows)
        return kept

    def count(self, allowed: ColumnElement[bool] | None = None, *, limit: int | None = None) -> int:
        """Number of logs (that a condition allows), counted up to a limit."""
        found = select(logs.c.id).where(self._mine if allowed is None else allowed).limit(limit)
        with self._db.read() as connection:
            return int(
                connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
            )

    def ids(self) -> Iterator[str]:
        """The ids of all logs, in their order, read in pages."""
        last = ""
        while True:
            with self._db.read() as connection:
                page = connection.execute(
                    select(logs.c.id)
                    .where(self._mine, logs.c.id > last)
                    .order_by(logs.c.id)
                    .limit(_CHUNK)
                ).all()
            if not page:
                return
            yield from (row.id for row in page)
            last = page[-1].id

    def starting_with(self, prefix: str, limit: int = 2) -> list[str]:
        """Ids of logs that begin so; enough of them to know whether there is more than one."""
        with self._db.read() as connection:
            rows = connection.execute(
                select(logs.c.id)
                .where(self._mine, logs.c.id.startswith(prefix, autoescape=True))
                .order_by(logs.c.id)
                .limit(limit)
            )
            return [row.id for row in rows]

    def damaged(self) -> Iterator[str]:
        """Ids of logs whose trace does not fit its id any more."""
        for chunk in chunks(list(self.ids())):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace).where(logs.c.id.in_(chunk))
                ).all()
            yield from (row.id for row in rows if self.intact(row.id, row.trace) is None)

    def info(
        self,
        ids: Sequence[str] | None = None,
        *,
        outcomes: Sequence[Outcome] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> list[LogInfo]:
        """Logs with their counters, newest first; damaged ones are left out."""
        number = select(func.count(segments.c.file)).where(segments.c.log_id == logs.c.id)
        size = select(func.coalesce(func.sum(segments.c.bytes), 0)).where(
            segments.c.log_id == logs.c.id
        )
        waiting = select(func.count()).where(
            embeddings.c.log_id == logs.c.id, embeddings.c.indexed_in.is_(None)
        )
        statement = (
            select(
                logs,
                number.scalar_subquery().label("segments"),
                size.scalar_subquery().label("segment_bytes"),
                waiting.scalar_subquery().label("waiting"),
            )
            .where(self._mine)
            .order_by(logs.c.captured_at.desc(), logs.c.id)
            .limit(limit)
        )
        if ids is not None:
            statement = statement.where(logs.c.id.in_(ids))
        if outcomes is not None:
            statement = statement.where(logs.c.outcome.in_(outcomes))
        if where is not None:
            statement = statement.where(condition(where))
        with self._db.read() as connection:
            rows = connection.execute(statement).all()
        return [info for row in rows if (info := self._info(row)) is not None]

    def _info(self, row: Row[Any]) -> LogInfo | None:
        trace = self.intact(row.id, row.trace)
        if trace is None:
            return None
        return LogInfo(
            id=row.id,
            trace=trace,
            captured_at=row.captured_at,
            times_seen=row.times_seen,
            times_recalled=row.times_recalled,
            times_helped=row.times_helped,
            times_harmed=row.times_harmed,
            state="captured" if not row.embedded else "embedded" if row.waiting else "indexed",
            segments=row.segments,
            bytes=row.bytes + int(row.segment_bytes),
        )

    def count_uses(self, uses: Mapping[str, int]) -> None:
        """Record how often logs were recalled."""
        self._count({key: {"times_recalled": number} for key, number in uses.items()}, used=True)

    def count_feedback(self, ids: Iterable[str], *, helped: bool) -> set[str]:
        """Record that logs helped or harmed; gives the ids that exist."""
        column = "times_helped" if helped else "times_harmed"
        return self._count({key: {column: 1} for key in ids}, used=False)

    def _count(self, numbers: Mapping[str, Mapping[str, int]], *, used: bool) -> set[str]:
        found = set()
        with self._db.write() as connection:
            for key, columns in sorted(numbers.items()):  # in one order: no deadlocks
                values: dict[str, Any] = {
                    name: logs.c[name] + number for name, number in columns.items()
                }
                if used:
                    values["used_at"] = time.time()
                statement = update(logs).where(self.mine_by_id, logs.c.id == key).values(values)
                if connection.execute(statement).rowcount:
                    found.add(key)
        return found

    def restore(self, found: Sequence[tuple[Trace, Mapping[str, float]]]) -> int:
        """Record logs of another store with the `COUNTERS` that they had there.

        Logs that are here already stay as they are, but for counters that were higher there, an
        outcome where none is known here, and a trace that is damaged here. Doing it again changes
        nothing.

        Returns:
            How many of the logs are new.
        """
        new = 0
        for start in range(0, len(found), _CHUNK):
            with self._db.write() as connection:
                for trace, counters in found[start : start + _CHUNK]:
                    new += self._restore(connection, trace, counters)
        return new

    def _restore(self, connection: Connection, trace: Trace, counters: Mapping[str, float]) -> bool:
        key = log_id(self.namespace, trace)
        columns = (logs.c[name] for name in COUNTERS)
        row = connection.execute(
            select(logs.c.outcome, logs.c.trace, *columns).where(self.mine_by_id, logs.c.id == key)
        ).one_or_none()
        if row is None:
            self._add(connection, key, trace, counters["captured_at"])
            values = {**counters, "used_at": counters["captured_at"]}
        else:
            if row.outcome != "unknown":
                trace = trace.model_copy(update={"outcome": row.outcome})
            if trace.outcome != row.outcome or self.intact(key, row.trace) is None:
                self.replace(connection, key, trace)
            values = {name: max(getattr(row, name), counters[name]) for name in COUNTERS}
        connection.execute(update(logs).where(logs.c.id == key).values(values))
        return row is None

    def delete(self, ids: Sequence[str]) -> set[str]:
        """Delete logs with everything derived; gives the ids that existed.

        Index entries and files are queued in the same transaction: see `Removals`.
        """
        deleted: set[str] = set()
        for chunk in chunks(ids):
            with self._db.write() as connection:
                mine = [
                    row.id
                    for row in connection.execute(
                        select(logs.c.id)
                        .where(self.mine_by_id, logs.c.id.in_(chunk))
                        .order_by(logs.c.id)
                        .with_for_update()  # nobody adds a segment meanwhile (PostgreSQL)
                    )
                ]
                files = connection.execute(
                    select(segments.c.file).where(
                        segments.c.log_id.in_(mine), segments.c.file.is_not(None)
                    )
                ).all()
                rows = [{"log_id": key, "file": None} for key in mine]
                rows += [{"log_id": None, "file": row.file} for row in files]
                if rows:
                    connection.execute(
                        insert(removals), [{"namespace": self.namespace, **row} for row in rows]
                    )
                connection.execute(delete(logs).where(logs.c.id.in_(mine)))
                deleted.update(mine)
        return deleted


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Parts small enough for one statement."""
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]

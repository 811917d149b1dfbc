"""The ledger: the durable record of every captured trace of one namespace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.store.capture_merge import OUTCOME_CERTAINTY, merge_recapture
from lag_integrations.store.chunks import chunks
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import queue_removals
from lag_integrations.store.filters import Where, condition
from lag_integrations.store.ledger_reader import LedgerReader
from lag_integrations.store.lesson_links import bases_of, lessons_of
from lag_integrations.store.log_id import log_id
from lag_integrations.store.recall_conditions import in_quarantine
from lag_integrations.store.schema import logs, segments, tags
from lag_integrations.store.store_metadata import note_deletion
from lag_integrations.store.tags import OWN, RUN, SOURCE, log_tags, run_tag
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.provenance import (
    MessageSource,
    is_untrusted,
    least_trusted,
    response_source,
)
from lag_integrations.traces.reserved_metadata import (
    JUDGED,
    NOT_RECALLED,
    OUTDATED,
    QUARANTINED,
    UNJUDGED,
    VERDICT,
    lesson_sources,
    refuse_reserved,
    without,
)
from lag_integrations.traces.screening import Gate
from lag_integrations.traces.trace import Trace

MAX_TRACE_BYTES = 64 * 2**20
_MAX_RUNS = 100
"""Runs of the same content by which a log is found: the latest."""
FIRST_COUNTERS = {"times_seen": 1, "times_recalled": 0, "times_helped": 0, "times_harmed": 0}


class Capture(NamedTuple):
    """A trace made ready to be recorded.

    Attributes:
        key: Id of its log.
        trace: The trace, redacted and screened.
        content: Its `content_columns`.
        source: Its least trusted source.
        captured_at: In Unix seconds.
    """

    key: str
    trace: Trace
    content: Mapping[str, Any]
    source: MessageSource
    captured_at: float


class Ledger(LedgerReader):
    """Reads and writes the logs of one namespace. Methods are transactions, and thread safe.

    Args:
        database: The ledger's database.
        namespace: The tenant; no method sees another's logs.
        ttl: Seconds after its last capture for which a log may be recalled.
        gate: Redacts and screens every trace before it is recorded.
    """

    def __init__(
        self,
        database: Database,
        namespace: str,
        ttl: float | None = None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(database, namespace, ttl)
        self.gate = gate or Gate()

    def add(self, traces: Sequence[Trace], *, ours: bool = False, judged: bool = True) -> list[str]:
        """Record traces durably, and return their log ids.

        A repeated capture of the same content is counted, and replaces the earlier one. But an
        outcome that is less certain does not replace the known one, and no outcome replaces a
        verdict.

        Args:
            traces: The traces.
            ours: Whether they may have reserved metadata.
            judged: Whether somebody judged their outcomes, rather than the capture inferred them.

        Raises:
            TraceError: A trace cannot be read back, is too large, has reserved metadata, or is
                refused; none is recorded.
        """
        captures = [self.prepare(trace, ours=ours, judged=judged) for trace in traces]
        now = time.time()
        captures = [
            capture._replace(captured_at=now + number * 1e-6)  # they keep their order
            for number, capture in enumerate(captures)
        ]
        # In one order: otherwise those who add the same logs could deadlock (PostgreSQL).
        for chunk in chunks(sorted(captures, key=lambda one: (one.key, one.captured_at))):
            with self._db.write() as connection:
                for capture in chunk:
                    self.insert(connection, *capture)
        return [capture.key for capture in captures]

    def prepare(self, trace: Trace, *, ours: bool, judged: bool) -> Capture:
        """Redact and screen a trace, and find out its source; arguments and errors as for `add`."""
        passed = self._screen(trace, ours=ours)
        source = self.find_source(passed)
        passed = _marked(passed, source, judged=judged)
        key = log_id(self.namespace, passed)
        return Capture(key, passed, content_columns(passed), source, time.time())

    def _screen(self, trace: Trace, *, ours: bool) -> Trace:
        """Return the trace to store.

        Raises:
            TraceError: It is not to be stored.
        """
        if not ours:
            refuse_reserved(trace.metadata)
        trace = self.gate(trace)
        return trace if trace.has_response else _with_metadata(trace, NOT_RECALLED)

    def find_source(self, trace: Trace) -> MessageSource:
        """Return the least trusted source behind a run, including those of runs it builds on.

        These are the unjudged runs that were recalled into it, or came before it in its thread. A
        lesson is trusted as far as all unjudged runs that it was made of.
        """
        if runs := lesson_sources(trace.metadata):
            found: list[MessageSource] = ["assistant"]
        else:
            found, runs = [response_source(trace, self.gate.untrusted_tools)], [*trace.helped_by]
        behind: list[ColumnElement[bool]] = [logs.c.id.in_(chunk) for chunk in chunks(runs)]
        if trace.earlier and Owner.of(trace.metadata).thread is not None:
            with suppress(StoreError):  # no filter can name it, as an integer of 400 digits
                behind.append(condition({"thread_id": trace.metadata["thread_id"]}))
        unjudged = logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == OWN))
        for these in behind:
            known = self._tag_texts(these, unjudged, tags.c.key == SOURCE)
            found += cast(list[MessageSource], known)
        return least_trusted(found)

    def insert(
        self,
        connection: Connection,
        key: str,
        trace: Trace,
        content: Mapping[str, Any],
        source: MessageSource,
        captured_at: float,
    ) -> None:
        """Record a capture within a transaction, as a new log or as a repeated capture.

        Args:
            connection: The transaction.
            key: The log.
            trace: The trace.
            content: Its `content_columns`.
            source: Its least trusted source.
            captured_at: In Unix seconds.
        """
        seen = connection.execute(
            self._db.upsert(logs)
            .values(
                id=key,
                namespace=self.namespace,
                content_hash=trace.content_hash,
                captured_at=captured_at,
                used_at=captured_at,
                embedded=False,
                **FIRST_COUNTERS,
                **content,
            )
            .on_conflict_do_update(
                index_elements=[logs.c.id],
                set_={
                    "times_seen": logs.c.times_seen + 1,
                    "captured_at": captured_at,
                    "used_at": captured_at,
                },
            )
            .returning(logs.c.times_seen)
        ).one()
        rows = [run_tag(key, trace.id, seen.times_seen)]
        if seen.times_seen > 1:
            self.replace(connection, key, self._merge_known(connection, key, trace), source)
            old = tags.c.position <= seen.times_seen - _MAX_RUNS
            connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key == RUN, old))
        else:
            rows += log_tags(key, trace, source)
        connection.execute(insert(tags), rows)

    def _merge_known(self, connection: Connection, key: str, trace: Trace) -> Trace:
        """Return a trace with what a verdict, a judge or a screen said of the stored one."""
        row = connection.execute(select(logs.c.outcome, logs.c.trace).where(logs.c.id == key)).one()
        known = self.parse_intact(key, row.trace)
        if known is not None:
            has_screen = self.gate.screen is not None
            return merge_recapture(
                trace, known, keep=[VERDICT] if has_screen else [VERDICT, QUARANTINED]
            )
        if OUTCOME_CERTAINTY[trace.outcome] < OUTCOME_CERTAINTY[row.outcome]:
            return trace.model_copy(update={"outcome": row.outcome})
        return trace

    def replace(
        self, connection: Connection, key: str, trace: Trace, source: MessageSource | None = None
    ) -> None:
        """Replace a log's trace by one of the same content, within a transaction.

        Lessons are deleted that would have been made otherwise of it.

        Args:
            connection: The transaction.
            key: The log.
            trace: The trace.
            source: Its least trusted source; by default that of the replaced trace.
        """
        if source is None:
            known = connection.execute(
                select(tags.c.text).where(tags.c.log_id == key, tags.c.key == SOURCE)
            ).scalar_one_or_none()
            source = known or response_source(trace, self.gate.untrusted_tools)
        lessons = lessons_of(connection, [key])
        before = bases_of(connection, [key]) if lessons else {}
        connection.execute(update(logs).where(logs.c.id == key).values(content_columns(trace)))
        connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key != RUN))
        connection.execute(insert(tags), log_tags(key, trace, source))
        if lessons and bases_of(connection, [key]) != before:
            self.delete_locked(connection, self.lock_ids(connection, lessons))

    def lock(
        self, connection: Connection, ids: Sequence[str], *conditions: ColumnElement[bool]
    ) -> Sequence[Row[Any]]:
        """Lock logs for the rest of a transaction; return the id and the stored trace of each."""
        return self._lock(connection, ids, (logs.c.id, logs.c.trace), *conditions)

    def lock_ids(self, connection: Connection, ids: Sequence[str]) -> list[str]:
        """Lock logs for the rest of a transaction; return the ids of those that exist."""
        return [row.id for row in self._lock(connection, ids, (logs.c.id,))]

    def _lock(
        self,
        connection: Connection,
        ids: Sequence[str],
        columns: Sequence[ColumnElement[Any]],
        *conditions: ColumnElement[bool],
    ) -> Sequence[Row[Any]]:
        return connection.execute(
            select(*columns)
            .where(self.mine_by_id, logs.c.id.in_(ids), *conditions)
            .order_by(logs.c.id)  # in one order: no deadlocks (PostgreSQL)
            .with_for_update()
        ).all()

    def release(self, ids: Sequence[str]) -> set[str]:
        """Release logs from quarantine; return the ids of those that were in it."""
        return self._change_metadata(
            ids, lambda metadata: without(metadata, QUARANTINED), in_quarantine()
        )

    def mark_outdated(self, filters: Iterable[Where]) -> int:
        """Stop the recall of logs that fit any filter, until they are confirmed; count them.

        Raises:
            StoreError: A filter is malformed.
        """
        ids = {key: None for where in filters for key in self.ids(where)}
        return len(self._change_metadata(list(ids), lambda metadata: {**metadata, **OUTDATED}))

    def _change_metadata(
        self,
        ids: Sequence[str],
        change: Callable[[Mapping[str, Any]], dict[str, Any]],
        *conditions: ColumnElement[bool],
    ) -> set[str]:
        """Change the metadata of intact logs; return their ids."""
        changed = set()
        for chunk in chunks(ids):
            with self._db.write() as connection:
                for row in self.lock(connection, chunk, *conditions):
                    if (trace := self.parse_intact(row.id, row.trace)) is not None:
                        update = {"metadata": change(trace.metadata)}
                        self.replace(connection, row.id, trace.model_copy(update=update))
                        changed.add(row.id)
        return changed

    def count_uses(self, uses: Mapping[str, int]) -> None:
        """Add to the number of times that logs were recalled."""
        self._count({key: {"times_recalled": number} for key, number in uses.items()}, used=True)

    def count_feedback(self, ids: Iterable[str], *, helped: bool) -> set[str]:
        """Count that logs helped or harmed; return the ids that exist."""
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

    def delete(self, ids: Sequence[str], *, evicted: bool = False) -> set[str]:
        """Delete logs with everything derived; return the ids that existed, those of lessons too.

        A lesson goes with the first of its sources: what a deleted run said must not live on in it.
        Index entries and files are queued in the same transaction: see `DeletionQueue`.

        Args:
            ids: The logs.
            evicted: Whether a budget evicts them: then other processes need not drop at once what
                they hold of them.
        """
        deleted: set[str] = set()
        for chunk in chunks(ids):
            with self._db.write() as connection:
                # Together, in one order; nobody adds a segment meanwhile.
                wanted = sorted({*chunk, *lessons_of(connection, chunk)})
                mine = self.lock_ids(connection, wanted)
                # Those that were made before the lock was ours.
                late = set(lessons_of(connection, mine)) - set(mine)
                mine += self.lock_ids(connection, sorted(late))
                self.delete_locked(connection, mine)
                # Last: whoever else deletes waits for this row, and holds no other meanwhile.
                if mine and not evicted:
                    note_deletion(self._db, connection, self.namespace)
                deleted.update(mine)
        return deleted

    def delete_locked(self, connection: Connection, mine: Sequence[str]) -> None:
        """Delete logs of this namespace that the transaction has locked."""
        files = connection.execute(
            select(segments.c.file).where(segments.c.log_id.in_(mine), segments.c.file.is_not(None))
        ).scalars()
        queue_removals(connection, self.namespace, log_ids=mine, files=list(files))
        connection.execute(delete(logs).where(logs.c.id.in_(mine)))


def content_columns(trace: Trace) -> dict[str, Any]:
    """Return the columns of a trace itself.

    Raises:
        TraceError: It cannot be read back, or is too large.
    """
    text = trace.to_json()
    size = len(text.encode())
    if size > MAX_TRACE_BYTES:
        raise TraceError(
            f"A trace has more than {MAX_TRACE_BYTES:,} bytes. Cut what it holds, or keep large "
            "contents elsewhere and name them."
        )
    Trace.from_json(text)
    return {"outcome": trace.outcome, "trace": text, "bytes": size}


def _marked(trace: Trace, source: MessageSource, *, judged: bool) -> Trace:
    """Return a new trace with the mark of who says its outcome, where that matters."""
    if judged:
        counts = trace.helped_by and trace.outcome in ("success", "failure")
        return _with_metadata(trace, JUDGED) if counts else trace
    return _with_metadata(trace, UNJUDGED) if is_untrusted(source) else trace


def _with_metadata(trace: Trace, marks: Mapping[str, bool]) -> Trace:
    return trace.model_copy(update={"metadata": {**trace.metadata, **marks}})

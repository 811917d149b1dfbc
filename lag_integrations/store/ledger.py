"""The ledger: every captured trace of one namespace, and what becomes of it."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    true,
    update,
)

from lag_integrations.errors import StoreError, TraceError, TraceRefusedError
from lag_integrations.store.database import Database
from lag_integrations.store.filters import (
    OWN,
    RUN,
    SOURCE,
    Where,
    condition,
    readable_by,
    run_row,
    source_rows,
    tag_rows,
)
from lag_integrations.store.schema import embeddings, logs, removals, segments, tags
from lag_integrations.store.store_metadata import note_deletion
from lag_integrations.traces.owner import NOBODY, Owner
from lag_integrations.traces.provenance import (
    MessageSource,
    is_untrusted,
    least_trusted,
    response_source,
)
from lag_integrations.traces.reserved_metadata import (
    IMPORTED,
    NOT_RECALLED,
    OUTDATED,
    QUARANTINED,
    UNJUDGED,
    VERDICT,
    is_marked,
    refuse_reserved,
    restricting,
    without,
)
from lag_integrations.traces.screening import Gate
from lag_integrations.traces.trace import Outcome, Trace

logger = logging.getLogger(__name__)

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_BYTES = 64 * 2**20
"""Of a trace."""
_CHUNK = 500
"""Rows a transaction: others get their turn, and databases limit the number of parameters."""
_CERTAINTY: dict[Outcome, int] = {"incomplete": 0, "unknown": 1, "success": 2, "failure": 2}
"""How much an outcome says: of the same content captured twice, the more certain one is kept."""
_JUDGED = 1
"""How much it says more, if somebody judged."""
_RUNS = 100
"""Runs of the same content by which a log is found: the latest."""
COUNTERS = ("captured_at", "times_seen", "times_recalled", "times_helped", "times_harmed")
_SOURCE = (
    select(tags.c.text)
    .where(tags.c.log_id == logs.c.id, tags.c.key == SOURCE)
    .scalar_subquery()
    .label("source")
)
_NEW = {"times_seen": 1, "times_recalled": 0, "times_helped": 0, "times_harmed": 0}


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
        source: The least trusted source that it follows (see `provenance`); None of a log from
            before this was recorded.
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
    source: str | None
    segments: int
    bytes: int

    @property
    def quarantine(self) -> str | None:
        """Why it is in quarantine; None if it is not."""
        reason = self.trace.metadata.get(QUARANTINED)
        return None if reason is None else str(reason)


class Restorable(NamedTuple):
    """A log of another store.

    Attributes:
        trace: The run.
        counters: The `COUNTERS` that it had there.
        source: The least trusted source that it follows, as far as is known there.
    """

    trace: Trace
    counters: Mapping[str, float]
    source: MessageSource | None = None


def in_quarantine() -> ColumnElement[bool]:
    """Return the condition that a log waits for somebody to release it."""
    return logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == QUARANTINED))


def validate_namespace(name: object) -> str:
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
    """What the ledger holds of a trace itself.

    Raises:
        TraceError: It cannot be read back, or is too large.
    """
    text = trace.to_json()
    size = len(text.encode())
    if size > MAX_BYTES:
        raise TraceError(
            f"A trace has more than {MAX_BYTES:,} bytes. Cut what it holds, or keep large contents "
            "elsewhere and name them."
        )
    Trace.from_json(text)
    return {"outcome": trace.outcome, "trace": text, "bytes": size}


class Ledger:
    """Durable record of one namespace's logs. Methods are transactions, and thread safe.

    Args:
        database: Where it is kept.
        namespace: The tenant; no method sees another's logs.
        ttl: Seconds after which a log is no longer recalled, from its last capture.
        gate: What every trace passes before it is recorded.
    """

    def __init__(
        self,
        database: Database,
        namespace: str,
        ttl: float | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._db = database
        self._gate = gate or Gate()
        self.namespace = validate_namespace(namespace)
        self._ttl = ttl
        self._mine = logs.c.namespace == self.namespace
        # An expression: SQLite would rather go through all of a namespace than look for ids.
        self.mine_by_id = logs.c.namespace.concat("") == self.namespace

    def add(self, traces: Sequence[Trace], *, ours: bool = False, judged: bool = True) -> list[str]:
        """Record traces durably, and return their log ids.

        A run captured before is counted. What is newer is kept, but for an outcome that says less
        than the one known, and for any outcome of a log on which someone gave a verdict.

        Args:
            traces: The traces.
            ours: Whether they may have the metadata that only this package sets.
            judged: Whether somebody says their outcomes, rather than a capture by their ends.

        Raises:
            TraceError: A trace cannot be read back, is too large, has reserved metadata, or is
                refused; none is recorded.
        """
        passed = [self._passed(trace, ours=ours) for trace in traces]
        sources = [self._source_of(trace) for trace in passed]
        traces = [
            _marked(trace, UNJUDGED) if is_untrusted(source) and not judged else trace
            for trace, source in zip(passed, sources, strict=True)
        ]
        contents = [_content(trace) for trace in traces]
        ids = [log_id(self.namespace, trace) for trace in traces]
        now = time.time()
        times = [now + number * 1e-6 for number in range(len(ids))]  # they keep their order
        # In one order: otherwise those who add the same logs could deadlock (PostgreSQL).
        rows = zip(ids, times, traces, contents, sources, strict=True)
        ordered = sorted(rows, key=lambda row: row[:2])
        for start in range(0, len(ordered), _CHUNK):
            with self._db.write() as connection:
                for key, captured_at, trace, content, source in ordered[start : start + _CHUNK]:
                    self._add(connection, key, trace, content, source, captured_at)
        return ids

    def _passed(self, trace: Trace, *, ours: bool) -> Trace:
        """A trace as it is to be stored, of what is given.

        Raises:
            TraceError: It is not to be stored.
        """
        if not ours:
            refuse_reserved(trace.metadata)
        trace = self._gate(trace)
        return trace if trace.has_response else _marked(trace, NOT_RECALLED)

    def _source_of(self, trace: Trace) -> MessageSource:
        """The least trusted source that a run follows, by way of other runs, too.

        What an unjudged run read that was recalled into it, or that came before it in its thread,
        stands behind what it says.
        """
        found = [response_source(trace, self._gate.untrusted_tools)]
        behind: list[ColumnElement[bool]] = []
        behind += [logs.c.id.in_(chunk) for chunk in chunks(trace.helped_by)]
        thread = trace.metadata.get("thread_id")
        if trace.earlier and isinstance(thread, str):
            behind.append(condition({"thread_id": thread}))
        unjudged = logs.c.id.in_(select(tags.c.log_id).where(tags.c.key == OWN))
        for these in behind:
            with self._db.read() as connection:
                rows = connection.execute(
                    select(tags.c.text)
                    .distinct()
                    .join(logs, logs.c.id == tags.c.log_id)
                    .where(self.mine_by_id, these, unjudged, tags.c.key == SOURCE)
                )
                found += [row.text for row in rows]
        return least_trusted(found)

    def _add(
        self,
        connection: Connection,
        key: str,
        trace: Trace,
        content: dict[str, Any],
        source: MessageSource,
        now: float,
    ) -> None:
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
                **content,
            )
            .on_conflict_do_update(
                index_elements=[logs.c.id],
                set_={"times_seen": logs.c.times_seen + 1, "captured_at": now, "used_at": now},
            )
            .returning(logs.c.times_seen)
        ).one()
        rows = [run_row(key, trace.id, seen.times_seen)]
        if seen.times_seen > 1:
            known = self._with_what_is_known(connection, key, trace)
            self.replace(connection, key, known, source)
            old = tags.c.position <= seen.times_seen - _RUNS
            connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key == RUN, old))
        else:
            rows += _tag_rows(key, trace, source)
        connection.execute(insert(tags), rows)

    def _with_what_is_known(self, connection: Connection, key: str, trace: Trace) -> Trace:
        """A trace with what a verdict, a judge or a screen said of an earlier one like it."""
        row = connection.execute(select(logs.c.outcome, logs.c.trace).where(logs.c.id == key)).one()
        known = self.intact(key, row.trace)
        if known is None:
            if _CERTAINTY[trace.outcome] < _CERTAINTY[row.outcome]:
                trace = trace.model_copy(update={"outcome": row.outcome})
            return trace
        kept = [VERDICT] if self._gate.screen is not None else [VERDICT, QUARANTINED]
        metadata = {
            **trace.metadata,
            **{name: known.metadata[name] for name in kept if name in known.metadata},
        }
        outcome = trace.outcome
        if VERDICT in known.metadata or _certainty(trace) < _certainty(known):
            outcome = known.outcome
            metadata = without(metadata, *UNJUDGED)
            if is_marked(known.metadata, UNJUDGED):
                metadata |= UNJUDGED
        return trace.model_copy(update={"outcome": outcome, "metadata": metadata})

    def replace(
        self, connection: Connection, key: str, trace: Trace, source: MessageSource | None = None
    ) -> None:
        """Put a trace of the same content in the place of another, within a transaction.

        Args:
            connection: The transaction.
            key: The log.
            trace: The trace.
            source: Its least trusted source; by default that of the other.
        """
        if source is None:
            known = connection.execute(
                select(tags.c.text).where(tags.c.log_id == key, tags.c.key == SOURCE)
            ).scalar_one_or_none()
            source = known or response_source(trace, self._gate.untrusted_tools)
        connection.execute(update(logs).where(logs.c.id == key).values(_content(trace)))
        connection.execute(delete(tags).where(tags.c.log_id == key, tags.c.key != RUN))
        connection.execute(insert(tags), _tag_rows(key, trace, source))

    def release(self, ids: Sequence[str]) -> set[str]:
        """Let logs out of quarantine; return those that were in it."""
        released = set()
        for chunk in chunks(ids):
            with self._db.write() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace)
                    .where(self.mine_by_id, logs.c.id.in_(chunk), in_quarantine())
                    .order_by(logs.c.id)
                    .with_for_update()
                ).all()
                for row in rows:
                    if (trace := self.intact(row.id, row.trace)) is not None:
                        metadata = without(trace.metadata, QUARANTINED)
                        changed = trace.model_copy(update={"metadata": metadata})
                        self.replace(connection, row.id, changed)
                        released.add(row.id)
        return released

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
        self,
        outcomes: Sequence[Outcome],
        where: Where | None = None,
        owner: Owner | None = NOBODY,
    ) -> ColumnElement[bool]:
        """The condition under which logs may be recalled: see `conditions`.

        Raises:
            StoreError: The filter is malformed.
        """
        return and_(self.mine_by_id, *self.conditions(outcomes, where, owner).values())

    def conditions(
        self,
        outcomes: Sequence[Outcome],
        where: Where | None = None,
        owner: Owner | None = NOBODY,
    ) -> dict[str, ColumnElement[bool]]:
        """Return the conditions under which logs may be recalled, by what a log lacks otherwise.

        Args:
            outcomes: The outcomes that logs may have.
            where: A filter.
            owner: Who asks, unless the filter says so: is given, of unjudged runs that read
                documents, only its own. None for one who is given all.

        Raises:
            StoreError: The filter is malformed.
        """
        filtered = None if where is None else condition(where)
        found = {
            "its outcome is not asked for": logs.c.outcome.in_(outcomes),
            "it harmed more often than it helped": logs.c.times_harmed <= logs.c.times_helped,
            "it is not for recall": not_(condition(NOT_RECALLED)),
            "it is in quarantine": not_(in_quarantine()),
            "a document that it used was changed": not_(condition(OUTDATED)),
        }
        if owner is not None:
            reason = "it read documents, nobody judged it, and it is of another user or thread"
            found[reason] = readable_by(owner.overridden_by(where))
        if self._ttl is not None:
            found["it is too old"] = logs.c.captured_at >= time.time() - self._ttl
        if filtered is not None:
            found["the filter leaves it out"] = filtered
        return found

    def filter_ids(self, ids: Sequence[str], allowed: ColumnElement[bool]) -> set[str]:
        """Those of the ids that a condition allows."""
        kept: set[str] = set()
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(select(logs.c.id).where(logs.c.id.in_(chunk), allowed))
                kept.update(row.id for row in rows)
        return kept

    def captured_at(self, ids: Sequence[str]) -> dict[str, float]:
        """When logs were captured last, in Unix seconds, by id."""
        found: dict[str, float] = {}
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.captured_at).where(
                        logs.c.id.in_(chunk), self.mine_by_id
                    )
                )
                found.update((row.id, row.captured_at) for row in rows)
        return found

    def count(self, allowed: ColumnElement[bool] | None = None, *, limit: int | None = None) -> int:
        """Number of logs (that a condition allows), counted up to a limit."""
        found = select(logs.c.id).where(self._mine if allowed is None else allowed).limit(limit)
        with self._db.read() as connection:
            return int(
                connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
            )

    def ids(self, where: Where | None = None) -> Iterator[str]:
        """The ids of all logs (with such metadata), in their order, read in pages.

        Raises:
            StoreError: The filter is malformed.
        """
        last, wanted = "", true() if where is None else condition(where)
        while True:
            with self._db.read() as connection:
                page = connection.execute(
                    select(logs.c.id)
                    .where(self._mine, logs.c.id > last, wanted)
                    .order_by(logs.c.id)
                    .limit(_CHUNK)
                ).all()
            if not page:
                return
            yield from (row.id for row in page)
            last = page[-1].id

    def ids_with_prefix(self, prefix: str, limit: int = 2) -> list[str]:
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
        allowed: ColumnElement[bool] | None = None,
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
                _SOURCE,
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
        if allowed is not None:
            statement = statement.where(allowed)
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
            source=row.source,
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

    def mark_outdated(self, filters: Iterable[Where]) -> int:
        """Let logs that fit any filter not be recalled until they are confirmed; return how many.

        Raises:
            StoreError: A filter is malformed.
        """
        ids = {key: None for where in filters for key in self.ids(where)}
        marked = 0
        for chunk in chunks(list(ids)):
            with self._db.write() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace)
                    .where(self.mine_by_id, logs.c.id.in_(chunk))
                    .order_by(logs.c.id)
                    .with_for_update()
                ).all()
                for row in rows:
                    if (trace := self.intact(row.id, row.trace)) is not None:
                        changed = {"metadata": {**trace.metadata, **OUTDATED}}
                        self.replace(connection, row.id, trace.model_copy(update=changed))
                        marked += 1
        return marked

    def restore(self, found: Sequence[Restorable], *, imported: bool = True) -> int:
        """Record logs of another store with the `COUNTERS` that they had there.

        Logs that are here already stay as they are, but for counters that were higher there, an
        outcome where less is known here, and a trace that is damaged here. Doing it again changes
        nothing. Logs that the gate refuses are left out. A source is the less trusted of what is
        said there and what is found here.

        Args:
            found: The logs.
            imported: Whether nobody vouches for them. Then they are marked as imported, and no
                judgement, counter or reserved metadata of theirs is believed, unless it restricts.

        Returns:
            How many of the logs are new.
        """
        new = 0
        for start in range(0, len(found), _CHUNK):
            passed = []
            for trace, counters, source in found[start : start + _CHUNK]:
                if imported:
                    marks = {**restricting(trace.metadata), **IMPORTED, **UNJUDGED}
                    trace = trace.model_copy(update={"metadata": marks})
                    counters = {**_NEW, "captured_at": counters["captured_at"]}
                try:
                    trace = self._gate(trace)
                except TraceRefusedError:
                    logger.info("A log of another store was left out.")
                    continue
                here = self._source_of(trace)
                passed.append((trace, counters, least_trusted([here, source or here])))
            with self._db.write() as connection:
                for log in passed:
                    new += self._restore(connection, *log, imported=imported)
        return new

    def _restore(
        self,
        connection: Connection,
        trace: Trace,
        counters: Mapping[str, float],
        source: MessageSource,
        *,
        imported: bool,
    ) -> bool:
        key = log_id(self.namespace, trace)
        columns = (logs.c[name] for name in COUNTERS)
        row = connection.execute(
            select(logs.c.outcome, logs.c.trace, _SOURCE, *columns).where(
                self.mine_by_id, logs.c.id == key
            )
        ).one_or_none()
        if row is None:
            self._add(connection, key, trace, _content(trace), source, counters["captured_at"])
            values = {**counters, "used_at": time.time()}
        else:
            known, source = (
                self.intact(key, row.trace),
                least_trusted([source, row.source or source]),
            )
            if known is None:
                self.replace(connection, key, trace, source)
            elif imported:
                return False
            elif _certainty(trace) > _certainty(known) and VERDICT not in known.metadata:
                given = {k: v for k, v in trace.metadata.items() if k in (VERDICT, *UNJUDGED)}
                metadata = {**without(known.metadata, *UNJUDGED), **given}
                changes = {"outcome": trace.outcome, "metadata": metadata}
                self.replace(connection, key, known.model_copy(update=changes), source)
            values = {name: max(getattr(row, name), counters[name]) for name in COUNTERS}
        connection.execute(update(logs).where(logs.c.id == key).values(values))
        return row is None

    def delete(self, ids: Sequence[str], *, evicted: bool = False) -> set[str]:
        """Delete logs with everything derived; gives the ids that existed.

        Index entries and files are queued in the same transaction: see `DeletionQueue`.

        Args:
            ids: The logs.
            evicted: Whether a budget wants it: then other processes need not let go at once of what
                they read lately.
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
                # Last: whoever else deletes waits for this row, and holds no other meanwhile.
                if mine and not evicted:
                    note_deletion(self._db, connection, self.namespace)
                deleted.update(mine)
        return deleted


def _marked(trace: Trace, marks: Mapping[str, bool]) -> Trace:
    return trace.model_copy(update={"metadata": {**trace.metadata, **marks}})


def _is_judged(trace: Trace) -> bool:
    return trace.outcome in ("success", "failure") and not is_marked(trace.metadata, UNJUDGED)


def _certainty(trace: Trace) -> int:
    return _CERTAINTY[trace.outcome] + (_JUDGED if _is_judged(trace) else 0)


def _tag_rows(key: str, trace: Trace, source: MessageSource) -> list[dict[str, Any]]:
    """The rows by which a log is found, but for those of its runs."""
    for_all = not is_untrusted(source) or _is_judged(trace)
    owner = None if for_all else Owner.of(trace.metadata)
    return [*tag_rows(key, trace.metadata), *source_rows(key, source, owner)]


def chunks(ids: Sequence[str], *, size: int = _CHUNK) -> Iterator[Sequence[str]]:
    """Parts small enough for one statement."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]

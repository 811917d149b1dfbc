"""Reading the ledger: the logs of one namespace, and those that may be recalled."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, func, not_, select, true

from lag_integrations.errors import TraceError
from lag_integrations.store.chunks import CHUNK, chunks, pages
from lag_integrations.store.database import Database
from lag_integrations.store.filters import Where, condition
from lag_integrations.store.log_id import log_id, validate_namespace
from lag_integrations.store.log_info import LogInfo, state_of
from lag_integrations.store.recall_conditions import in_quarantine, recall_conditions
from lag_integrations.store.schema import embeddings, logs, segments, tags
from lag_integrations.store.tags import RECALLED, SOURCE
from lag_integrations.store.utility import RunOutcomes
from lag_integrations.traces.owner import NOBODY, Owner
from lag_integrations.traces.trace import Outcome, Trace

logger = logging.getLogger(__name__)

STORED_SOURCE = (
    select(tags.c.text)
    .where(tags.c.log_id == logs.c.id, tags.c.key == SOURCE)
    .scalar_subquery()
    .label("source")
)
"""The least trusted source of a log."""
_NEWEST_FIRST = logs.c.captured_at.desc(), logs.c.id


class LedgerReader:
    """Reads the logs of one namespace. Methods are transactions, and thread safe.

    Args:
        database: The ledger's database.
        namespace: The tenant; no method sees another's logs.
        ttl: Seconds after its last capture for which a log may be recalled.

    Attributes:
        mine: The condition that a log is of this namespace.
        mine_by_id: The same, for statements that look for ids. It is an expression, because SQLite
            would otherwise go through the whole namespace.
    """

    def __init__(self, database: Database, namespace: str, ttl: float | None = None) -> None:
        self._db = database
        self.namespace = validate_namespace(namespace)
        self._ttl = ttl
        self.mine = logs.c.namespace == self.namespace
        self.mine_by_id = logs.c.namespace.concat("") == self.namespace

    def get(self, ids: Sequence[str]) -> dict[str, Trace]:
        """Return the traces of logs, by id, without ids that are unknown in this namespace.

        A trace that does not fit its hash is left out, and a warning is logged.
        """
        found: dict[str, Trace] = {}
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace).where(self.mine_by_id, logs.c.id.in_(chunk))
                ).all()
            for row in rows:
                trace = self.parse_intact(row.id, row.trace)
                if trace is None:
                    logger.warning("The trace of log %s is damaged; it is left out.", row.id)
                else:
                    found[row.id] = trace
        return found

    def having(
        self, where: Where, *, limit: int | None = None, with_quarantine: bool = True
    ) -> dict[str, Trace]:
        """Return the intact traces that fit a filter, by id, last captured first.

        Args:
            where: The filter.
            limit: Most traces.
            with_quarantine: Whether those in quarantine are among them.

        Raises:
            StoreError: The filter is malformed.
        """
        quarantine = () if with_quarantine else (not_(in_quarantine()),)
        with self._db.read() as connection:
            rows = connection.execute(
                select(logs.c.id, logs.c.trace)
                .where(self.mine_by_id, condition(where), *quarantine)
                .order_by(*_NEWEST_FIRST)
                .limit(limit)
            ).all()
        found = ((row.id, self.parse_intact(row.id, row.trace)) for row in rows)
        return {key: trace for key, trace in found if trace is not None}

    def values(self, key: str) -> list[str]:
        """Return the distinct texts that logs have under a metadata key."""
        return self._tag_texts(tags.c.key == key, tags.c.text.is_not(None))

    def _tag_texts(self, *conditions: ColumnElement[bool]) -> list[str]:
        with self._db.read() as connection:
            rows = connection.execute(
                select(tags.c.text)
                .distinct()
                .join(logs, logs.c.id == tags.c.log_id)
                .where(self.mine_by_id, *conditions)
            )
            return [row.text for row in rows]

    def parse_intact(self, key: str, text: str) -> Trace | None:
        """Parse a stored trace; return None if it does not fit the log's id."""
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
        """Return the condition under which logs may be recalled; see `recall_conditions`.

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
        """Return the conditions of `recall_conditions`, with this ledger's time to live.

        Raises:
            StoreError: The filter is malformed.
        """
        return recall_conditions(outcomes, where, owner, self._ttl)

    def filter_ids(self, ids: Sequence[str], allowed: ColumnElement[bool]) -> set[str]:
        """Return those of the ids whose logs fulfil a condition."""
        kept: set[str] = set()
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(select(logs.c.id).where(logs.c.id.in_(chunk), allowed))
                kept.update(row.id for row in rows)
        return kept

    def some_ids(self, allowed: ColumnElement[bool], *, limit: int) -> list[str]:
        """Return the ids of logs that fulfil a condition, up to a limit."""
        with self._db.read() as connection:
            found = connection.execute(select(logs.c.id).where(allowed).limit(limit))
            return list(found.scalars())

    def newest_ids(self, allowed: ColumnElement[bool], *, limit: int | None = None) -> list[str]:
        """Return the ids of logs that fulfil a condition, last captured first."""
        newest = select(logs.c.id).where(self.mine, allowed).order_by(*_NEWEST_FIRST).limit(limit)
        with self._db.read() as connection:
            return list(connection.execute(newest).scalars())

    def captured_at(self, ids: Sequence[str]) -> dict[str, float]:
        """Return when logs were last captured, in Unix seconds, by id."""
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

    def run_outcomes(self, ids: Sequence[str]) -> dict[str, RunOutcomes]:
        """Return how the judged runs ended into which logs were recalled, for those with any."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for chunk in chunks(ids):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(tags.c.text, logs.c.outcome, func.count())
                    .join(logs, logs.c.id == tags.c.log_id)
                    .where(tags.c.key == RECALLED, tags.c.text.in_(chunk), self.mine_by_id)
                    .group_by(tags.c.text, logs.c.outcome)
                )
                for log_id, outcome, number in rows:
                    found[log_id][outcome] = number
        return {key: RunOutcomes(of["success"], of["failure"]) for key, of in found.items()}

    def count(self, allowed: ColumnElement[bool] | None = None, *, limit: int | None = None) -> int:
        """Count the logs, or those that fulfil a condition, up to a limit."""
        found = select(logs.c.id).where(self.mine if allowed is None else allowed).limit(limit)
        with self._db.read() as connection:
            return int(
                connection.execute(select(func.count()).select_from(found.subquery())).scalar_one()
            )

    def ids(self, where: Where | None = None) -> Iterator[str]:
        """Yield the ids of all logs, or of those that fit a filter, ascending.

        They are read in pages, each in a transaction of its own.

        Raises:
            StoreError: The filter is malformed.
        """
        last, wanted = "", true() if where is None else condition(where)
        while True:
            with self._db.read() as connection:
                page = connection.execute(
                    select(logs.c.id)
                    .where(self.mine, logs.c.id > last, wanted)
                    .order_by(logs.c.id)
                    .limit(CHUNK)
                ).all()
            if not page:
                return
            yield from (row.id for row in page)
            last = page[-1].id

    def ids_with_prefix(self, prefix: str, limit: int = 2) -> list[str]:
        """Return ids that begin with a prefix: enough to know whether it is unique."""
        with self._db.read() as connection:
            rows = connection.execute(
                select(logs.c.id)
                .where(self.mine, logs.c.id.startswith(prefix, autoescape=True))
                .order_by(logs.c.id)
                .limit(limit)
            )
            return [row.id for row in rows]

    def pages(self, ids: Sequence[str]) -> Iterator[list[str]]:
        """Yield the ids of logs in pages whose traces have at most 16 MiB together, or in ones."""
        for chunk in chunks(ids):
            sizes = dict.fromkeys(chunk, 0)  # of those that are deleted meanwhile
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.bytes).where(logs.c.id.in_(chunk))
                )
                sizes.update((row.id, row.bytes) for row in rows)
            yield from pages(chunk, sizes.__getitem__)

    def damaged(self) -> Iterator[str]:
        """Yield the ids of logs whose trace does not fit its id."""
        for page in self.pages(list(self.ids())):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(logs.c.id, logs.c.trace).where(logs.c.id.in_(page))
                ).all()
            yield from (row.id for row in rows if self.parse_intact(row.id, row.trace) is None)

    def info(
        self,
        ids: Sequence[str] | None = None,
        *,
        outcomes: Sequence[Outcome] | None = None,
        where: Where | None = None,
        limit: int | None = None,
    ) -> list[LogInfo]:
        """Return intact logs with their counters, last captured first."""
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
                STORED_SOURCE,
            )
            .where(self.mine)
            .order_by(*_NEWEST_FIRST)
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
        trace = self.parse_intact(row.id, row.trace)
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
            state=state_of(embedded=row.embedded, waiting=bool(row.waiting)),
            source=row.source,
            segments=row.segments,
            bytes=row.bytes + int(row.segment_bytes),
        )

"""The table of segments: which exist of one namespace's logs, and in which files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, and_, delete, not_, select

from lag_integrations.kv.segment import SegmentKey
from lag_integrations.store.chunks import chunks
from lag_integrations.store.database import Database
from lag_integrations.store.deletion_queue import queue_removals
from lag_integrations.store.failures import failed
from lag_integrations.store.filters import condition
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.recall_conditions import has_outcome, in_quarantine
from lag_integrations.store.schema import logs, segments
from lag_integrations.traces.reserved_metadata import NOT_RECALLED
from lag_integrations.traces.trace import Outcome


def encode_task(key: SegmentKey) -> str:
    """Return the task under which a failure to encode is recorded."""
    return f"{key.fingerprint}/{key.selection}/{key.codec}"


class SegmentTable:
    """Table of segments in the ledger: one for each log, fingerprint, selection and codec.

    Args:
        database: The ledger's database.
        ledger: The logs that they are derived from.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger
        self._namespace = ledger.namespace

    def missing(
        self,
        key: SegmentKey,
        outcomes: Sequence[Outcome],
        limit: int | None = None,
        *,
        since: float = 0.0,
    ) -> list[str]:
        """Return the ids of logs without a segment of this kind, oldest first.

        Logs whose encoding failed or whose segment was evicted are left out.

        Args:
            key: Fingerprint, selection and codec; its log id is ignored.
            outcomes: Only logs with these.
            limit: Most ids to return.
            since: Only logs captured since then, in Unix seconds.
        """
        statement = (
            select(logs.c.id)
            .where(self._missing(key, outcomes), logs.c.captured_at >= since)
            .order_by(logs.c.captured_at)
            .limit(limit)
        )
        with self._db.read() as connection:
            return [row.id for row in connection.execute(statement)]

    def count_missing(self, key: SegmentKey, outcomes: Sequence[Outcome]) -> int:
        """Count the logs that `missing` returns."""
        return self._ledger.count(self._missing(key, outcomes))

    def is_missing(self, key: SegmentKey, outcomes: Sequence[Outcome]) -> bool:
        """Return whether `missing` would return this log."""
        condition = self._missing(key, outcomes) & (logs.c.id == key.log_id)
        return bool(self._ledger.count(condition))

    def _missing(self, key: SegmentKey, outcomes: Sequence[Outcome]) -> ColumnElement[bool]:
        return and_(
            self._ledger.mine,
            has_outcome(outcomes),
            not_(condition(NOT_RECALLED)),
            not_(in_quarantine()),
            logs.c.id.not_in(select(segments.c.log_id).where(_kind(key))),
            logs.c.id.not_in(failed(encode_task(key))),
        )

    def add(self, key: SegmentKey, *, file: str, tokens: int, size: int) -> bool:
        """Record a segment's file in place of an older one; return False if its log was deleted."""
        values = {"file": file, "tokens": tokens, "bytes": size}
        identity = {
            "log_id": key.log_id,
            "fingerprint": key.fingerprint,
            "selection": key.selection,
            "codec": key.codec,
        }
        with self._db.write() as connection:
            if not self._ledger.lock_ids(connection, [key.log_id]):
                return False
            old = connection.execute(
                select(segments.c.file).where(_kind(key), segments.c.log_id == key.log_id)
            ).scalar_one_or_none()
            if old is not None:
                queue_removals(connection, self._namespace, files=[old])
            connection.execute(
                self._db.upsert(segments)
                .values(**identity, **values)
                .on_conflict_do_update(index_elements=list(identity), set_=values)
            )
        return True

    def files(self, key: SegmentKey, ids: Sequence[str]) -> dict[str, str | None]:
        """Return the segment file of each log of this namespace; None for logs without one."""
        statement = (
            select(logs.c.id, segments.c.file)
            .outerjoin(segments, (segments.c.log_id == logs.c.id) & _kind(key))
            .where(self._ledger.mine_by_id, logs.c.id.in_(ids))
        )
        with self._db.read() as connection:
            return {row.id: row.file for row in connection.execute(statement)}

    def nbytes(self, key: SegmentKey, file: str) -> int | None:
        """Return the size of a segment's file; None if the segment has no such file."""
        statement = select(segments.c.bytes).where(
            _kind(key), segments.c.log_id == key.log_id, segments.c.file == file
        )
        with self._db.read() as connection:
            found: int | None = connection.execute(statement).scalar_one_or_none()
        return found

    def all_files(self) -> Iterator[tuple[SegmentKey, str, int]]:
        """Yield every stored segment of the namespace: key, file and bytes."""
        for chunk in chunks(list(self._ledger.ids())):
            with self._db.read() as connection:
                rows = connection.execute(
                    select(segments).where(
                        segments.c.log_id.in_(chunk), segments.c.file.is_not(None)
                    )
                ).all()
            for row in rows:
                key = SegmentKey(row.log_id, row.fingerprint, row.selection, row.codec)
                yield key, row.file, row.bytes

    def live_files(self, files: Sequence[str]) -> set[str]:
        """Return those of the files that the ledger names, in any namespace."""
        found: set[str] = set()
        for chunk in chunks(files):
            with self._db.read() as connection:
                rows = connection.execute(select(segments.c.file).where(segments.c.file.in_(chunk)))
                found.update(row.file for row in rows)
        return found

    def forget(self, key: SegmentKey, file: str | None) -> bool:
        """Delete a segment's row, so that it is encoded again, unless it has another file by now.

        Args:
            key: The segment.
            file: Its file, which stays where it is; None for a segment that was evicted.

        Returns:
            Whether a row was deleted.
        """
        same = segments.c.file.is_(None) if file is None else segments.c.file == file
        with self._db.write() as connection:
            gone = connection.execute(
                delete(segments).where(_kind(key), segments.c.log_id == key.log_id, same)
            )
        return bool(gone.rowcount)

    def forget_others(self, keep: SegmentKey) -> int:
        """Delete all segments but those of one kind, and queue their files; return their number."""
        number = 0
        for chunk in chunks(list(self._ledger.ids())):
            others = segments.c.log_id.in_(chunk) & not_(_kind(keep))
            with self._db.write() as connection:
                rows = connection.execute(
                    select(segments.c.file).where(others).with_for_update()
                ).all()
                files = [row.file for row in rows if row.file is not None]
                queue_removals(connection, self._namespace, files=files)
                connection.execute(delete(segments).where(others))
            number += len(files)
        return number


def _kind(key: SegmentKey) -> ColumnElement[bool]:
    return (
        (segments.c.fingerprint == key.fingerprint)
        & (segments.c.selection == key.selection)
        & (segments.c.codec == key.codec)
    )

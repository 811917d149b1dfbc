"""The lessons of one namespace, and the logs that lessons can be made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, not_, select

from lag_integrations.store.chunks import chunks
from lag_integrations.store.database import Database
from lag_integrations.store.ledger import Ledger
from lag_integrations.store.lesson_links import Basis, bases_of, is_lesson, lessons_of
from lag_integrations.store.schema import logs, tags
from lag_integrations.traces.reserved_metadata import LESSON_OF
from lag_integrations.traces.trace import Outcome, Trace


@dataclass(frozen=True)
class Lesson:
    """A lesson, or the record that none came of some logs.

    Attributes:
        id: Id of its log.
        sources: Ids of the logs that it was made of.
        made_at: When, in Unix seconds.
    """

    id: str
    sources: tuple[str, ...]
    made_at: float


class Lessons:
    """Reads and records lessons. A log is a source of one lesson at most.

    Args:
        database: The ledger's database.
        ledger: The logs.
    """

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._db = database
        self._ledger = ledger

    def all(self) -> list[Lesson]:
        """Return the lessons, the oldest first."""
        statement = (
            select(logs.c.id, logs.c.captured_at, tags.c.text)
            .join(tags, tags.c.log_id == logs.c.id)
            .where(self._ledger.mine_by_id, tags.c.key == LESSON_OF)
            .order_by(logs.c.captured_at, logs.c.id, tags.c.position)
        )
        with self._db.read() as connection:
            rows = connection.execute(statement).all()
        sources: dict[tuple[str, float], list[str]] = {}
        for row in rows:
            sources.setdefault((row.id, row.captured_at), []).append(row.text)
        return [Lesson(key, tuple(of), made_at) for (key, made_at), of in sources.items()]

    def state(self) -> tuple[int, float]:
        """Return the number of logs, and when the last was captured: a change means new runs."""
        mine = self._ledger.mine
        newest = select(func.count(), func.coalesce(func.max(logs.c.captured_at), 0.0)).where(mine)
        with self._db.read() as connection:
            count, captured_at = connection.execute(newest).one()
        return int(count), float(captured_at)

    def candidates(
        self, outcomes: Sequence[Outcome], known: Iterable[str], limit: int
    ) -> list[str]:
        """Return the ids of logs that lessons can be made of.

        They are embedded, and somebody may recall them, or they are of runs that failed.

        Args:
            outcomes: The outcomes of logs that are recalled.
            known: Sources of lessons, which are looked at in any case.
            limit: Most other logs: those that were captured last.
        """
        allowed = and_(
            self._ledger.recallable((*outcomes, "failure"), owner=None),
            logs.c.embedded,
            not_(is_lesson()),
        )
        newest = select(logs.c.id).where(allowed).order_by(logs.c.captured_at.desc()).limit(limit)
        with self._db.read() as connection:
            found = set(connection.execute(newest).scalars())
        return sorted(found | self._ledger.filter_ids(list(known), allowed))

    def bases(self, ids: Sequence[str]) -> dict[str, Basis]:
        """Return what lessons rest on of some logs, by id."""
        found: dict[str, Basis] = {}
        for chunk in chunks(ids):
            with self._db.read() as connection:
                found |= bases_of(connection, chunk)
        return found

    def add(
        self, trace: Trace, bases: Mapping[str, Basis], *, instead_of: str | None = None
    ) -> str | None:
        """Record a lesson, and delete the one that it replaces, in one transaction.

        Args:
            trace: The lesson.
            bases: What it rests on, by id of its sources, as they were when they were read.
            instead_of: The lesson that it replaces.

        Returns:
            Its id; None if a source was changed or deleted meanwhile, or another process made a
            lesson of it.

        Raises:
            TraceError: The trace is refused by the gate.
        """
        prepared = self._ledger.prepare(trace, ours=True, judged=False)
        sources = sorted(bases)
        with self._db.write() as connection:
            self._ledger.lock_ids(connection, sources)  # none is deleted meanwhile
            others = set(lessons_of(connection, sources)) - {instead_of}
            if others or bases_of(connection, sources) != dict(bases):
                return None
            if instead_of is not None:
                self._ledger.delete_locked(
                    connection, self._ledger.lock_ids(connection, [instead_of])
                )
            self._ledger.insert(connection, *prepared)
        return prepared.key

"""The database of the ledger: SQLite by default, any server that SQLAlchemy knows PostgreSQL by."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from lag_integrations.errors import StoreError
from lag_integrations.store.locks import Locks
from lag_integrations.store.migrations import bring_up_to_date

LEDGER_FILE = "ledger.sqlite"
_COMPACT_TRIES = 10
_SUPPORTED = ("sqlite", "postgresql")


class Database:
    """Connections to a ledger with the newest schema. Thread safe.

    Args:
        url: SQLAlchemy URL of a PostgreSQL database; an SQLite file in the folder if None.
        folder: The store's folder: lock files and backups go there.
        backed_up: There is a backup, so that an older ledger on a server may be migrated.

    Attributes:
        migrated_from: The schema version that the ledger had until now, if that was an older one.

    Raises:
        StoreError: The database cannot be used, holds something else, or is newer than this
            version.
    """

    def __init__(self, url: str | None, folder: Path, *, backed_up: bool = False) -> None:
        if url is not None and url.startswith("sqlite"):
            raise StoreError(
                "An SQLite ledger is always in the store's folder: give that folder as the path."
            )
        try:
            # Not a URL written out: a folder's name may hold what means something in one.
            self.url = (
                URL.create("sqlite", database=str(folder / LEDGER_FILE))
                if url is None
                else make_url(url)
            )
            if self.url.get_backend_name() not in _SUPPORTED:
                raise StoreError(
                    f"The ledger can be in {' or '.join(_SUPPORTED)}, not in "
                    f"{self.url.get_backend_name()}."
                )
            self.engine: Engine = create_engine(
                self.url,
                connect_args={"timeout": 60} if self.is_sqlite else {},
                pool_size=20,
                max_overflow=20,
                pool_pre_ping=not self.is_sqlite,
                hide_parameters=True,  # they are traces, and would stand in error messages
            )
        except (ArgumentError, ImportError) as error:
            raise StoreError(
                f"The ledger's URL cannot be used ({error}). It should look like "
                "postgresql+psycopg://user@host/database, with the driver installed "
                "(pip install 'lag_integrations[postgres]')."
            ) from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _configure)
            event.listen(self.engine, "begin", _begin)
        self.locks = Locks(self.url, folder / "locks")
        # SQLite has one writer at a time: threads queue here, which is fairer than its polling.
        self._writing = threading.RLock() if self.is_sqlite else None
        try:
            self.migrated_from = bring_up_to_date(self, folder, backed_up=backed_up)
        except DatabaseError as error:
            self.close()
            raise StoreError(
                f"{self} cannot be opened as a log store's ledger ({error.orig}). "
                "Give an empty folder, or restore it from a backup."
            ) from error
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file, not a server."""
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            StoreError: The database fails.
        """
        with self._explained(), self.engine.connect() as connection:
            yield connection.execution_options(lag_read=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is durable when it ends well, and never happened otherwise.

        Raises:
            StoreError: The database fails.
        """
        with self._explained():
            if self._writing is None:
                with self.engine.begin() as connection:
                    yield connection
            else:
                with self._writing, self.engine.begin() as connection:
                    yield connection

    def compact(self) -> bool:
        """Give the space of deleted rows back, and leave nothing of them in the journal.

        Returns:
            False if others were reading the journal all the time; it is emptied later then.
        """
        if not self.is_sqlite:
            return True
        for _ in range(_COMPACT_TRIES):
            with self._explained(), self.engine.connect() as connection:
                # The driver's own: these work step by step, and not in a transaction.
                cursor = connection.connection.cursor()
                try:
                    cursor.execute("PRAGMA incremental_vacuum")
                    cursor.fetchall()
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    busy = cursor.fetchall()[0][0]
                except sqlite3.OperationalError:  # another process is writing
                    busy = 1
                finally:
                    cursor.close()
            if not busy:
                return True
            time.sleep(0.02)
        return False

    def damage(self) -> list[str]:
        """What the database itself finds wrong with its file."""
        if not self.is_sqlite:
            return []
        with self.read() as connection:
            rows = connection.exec_driver_sql("PRAGMA integrity_check").all()
        return [str(row[0]) for row in rows if row[0] != "ok"]

    def upsert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that has ``on_conflict_do_…``."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # The first line: PostgreSQL's next ones may repeat the row.
            reason = str(getattr(error, "orig", None) or type(error).__name__).split("\n")[0]
            help_ = "Nothing was changed by the step that failed."
            if "full" in reason or "No space" in reason:
                help_ += " Free some space, or give the memory a budget (max_bytes)."
            elif "malformed" in reason or "not a database" in reason:
                help_ += " The ledger file is damaged: restore it from a backup or an export."
            # Not chained for users to read: the statement is there, but never its parameters.
            raise StoreError(f"The ledger {self} failed: {reason}. {help_}") from error


def _configure(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # heeded when the file is made
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")  # what add() returned survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA secure_delete=ON")  # what was deleted is overwritten
    cursor.close()


def _begin(connection: Connection) -> None:
    # A transaction that begins by reading and then writes fails if another wrote in between.
    reading = connection.get_execution_options().get("lag_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

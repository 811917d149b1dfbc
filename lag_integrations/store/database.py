"""The database of the ledger: SQLite by default, or PostgreSQL."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError, SQLAlchemyError

from lag_integrations.errors import StoreError
from lag_integrations.store.chroma.files import STATE_FILE
from lag_integrations.store.file_permissions import create_private_file, remove_others_access
from lag_integrations.store.foreign_files import refuse_foreign_ledger
from lag_integrations.store.locks import LOCK_TIMEOUT, Locks, busy, pause, sqlstate
from lag_integrations.store.migrations import BACKUPS, bring_up_to_date
from lag_integrations.store.read_only import is_read_only, open_read_only
from lag_integrations.store.schema import metadata
from lag_integrations.store.time_limits import set_time_limits

LEDGER_FILE = "ledger.sqlite"
_COMPACT_TRIES = 10
_BUSY = 60
"""Seconds to wait for other threads, and then for other processes, that write to an SQLite file. A
trace is lost if its `add` gives up."""
_CONNECT_TIMEOUT = 10
_REWRITE_WAIT = 10
"""Seconds to wait for users of a table of a server that is to be rewritten."""
_SUPPORTED = ("sqlite", "postgresql")


class Database:
    """Connections to a ledger with the newest schema. Thread safe.

    Args:
        url: SQLAlchemy URL of a PostgreSQL database; an SQLite file in the folder if None.
        folder: The store's folder, for lock files and backups.
        backed_up: Whether there is a backup, so that an older ledger on a server may be migrated.

    Attributes:
        read_only: Whether the ledger can only be read, since its folder cannot be written.
        migrated_from: The older schema version that the ledger had until now; None if it had the
            newest.

    Raises:
        BusyError: Others hold it for longer than is waited.
        StoreError: The database cannot be used, holds something else, or is newer than this
            version.
    """

    def __init__(self, url: str | None, folder: Path, *, backed_up: bool = False) -> None:
        if url is not None and url.startswith("sqlite"):
            raise StoreError(
                "An SQLite ledger is always in the store's folder: give that folder as the path."
            )
        if url is None:
            refuse_foreign_ledger(folder / LEDGER_FILE)
        self.read_only = url is None and is_read_only(folder / LEDGER_FILE)
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        if url is None and not self.read_only:
            create_private_file(folder / LEDGER_FILE)
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
                **({"creator": self._reader(folder)} if self.read_only else {}),
                connect_args={"timeout": _BUSY} if self.is_sqlite else self._timeout_args(),
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
            if not self.read_only:
                event.listen(self.engine, "connect", _configure)
            event.listen(self.engine, "begin", _begin)
        else:
            event.listen(self.engine, "connect", set_time_limits)
        locks = None if self.read_only else folder / "locks"
        self.locks = Locks(self.url, locks, self._timeout_args())
        # SQLite has one writer at a time: threads queue here, which is fairer than its polling.
        self._writing = threading.RLock() if self.is_sqlite else None
        try:
            self.migrated_from = bring_up_to_date(
                self.engine, self.locks, folder, read_only=self.read_only, backed_up=backed_up
            )
        except DatabaseError as error:
            self.close()
            if self._is_busy(error, str(error.orig)):
                raise busy(f"the ledger {self} ({error.orig})", _BUSY) from error
            raise StoreError(
                f"{self} cannot be opened as a log store's ledger ({error.orig}). "
                "Give an empty folder, or restore it from a backup."
            ) from error
        except BaseException:
            self.close()
            raise
        if self.migrated_from is not None:
            _close_to_others(folder)

    def __str__(self) -> str:
        return str(self.url.database) if self.is_sqlite else self.url.render_as_string()

    @property
    def dialect(self) -> str:
        """The kind of database: ``sqlite`` or ``postgresql``."""
        return self.url.get_backend_name()

    @property
    def is_sqlite(self) -> bool:
        """Whether it is an SQLite file, not a server."""
        return self.dialect == "sqlite"

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        if self._copies is not None:
            self._copies.cleanup()

    def _reader(self, folder: Path) -> Callable[[], sqlite3.Connection]:
        """Return a function that connects to a ledger that can only be read."""
        self._copies = tempfile.TemporaryDirectory(prefix="lag-")
        uri = open_read_only(folder / LEDGER_FILE, Path(self._copies.name))

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(
                uri, uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )

        return connect

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads.

        Raises:
            StoreError: The database fails.
        """
        with self._explained(), self.engine.connect() as connection:
            yield connection.execution_options(lag_read=True)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction: durable when the block ends well, rolled back otherwise.

        Raises:
            BusyError: Others write for longer than is waited.
            StoreError: The database fails, or can only be read.
        """
        self.require_writable()
        with self._explained():
            if self._writing is None:
                with self.engine.begin() as connection:
                    yield connection
            else:
                if not self._writing.acquire(timeout=_BUSY):
                    raise busy(f"the ledger {self}, in this process,", _BUSY)
                try:
                    with self.engine.begin() as connection:
                        yield connection
                finally:
                    self._writing.release()

    def require_writable(self) -> None:
        """Refuse a ledger that can only be read.

        Raises:
            StoreError: It can only be read.
        """
        if self.read_only:
            raise StoreError(
                f"{self} can only be read: its folder cannot be written. Copy the folder to where "
                "it can be, or be given the right to write it."
            )

    @contextmanager
    def sqlite_connection(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of SQLite's own driver, in no transaction.

        Raises:
            StoreError: The ledger cannot be read.
        """
        with self._explained():
            pooled = self.engine.raw_connection()
        try:
            connection = pooled.driver_connection
            assert isinstance(connection, sqlite3.Connection)
            yield connection
        finally:
            pooled.close()

    def clear_compiled_statements(self) -> None:
        """Drop compiled statements: each holds the values that it was first compiled with."""
        self.engine.clear_compiled_cache()

    def compact(self) -> bool:
        """Free the space of deleted rows, and empty the journal.

        Returns:
            False if others were reading the journal all the time; it is emptied later.
        """
        if not self.is_sqlite or self.read_only:
            return True
        for _ in range(_COMPACT_TRIES):
            with self._explained(), self.engine.connect() as connection:
                # The driver's own: these work step by step, and not in a transaction.
                cursor = connection.connection.cursor()
                try:
                    # Waiting for readers, SQLite would keep all writers out.
                    cursor.execute("PRAGMA busy_timeout=0")
                    cursor.execute("PRAGMA incremental_vacuum")
                    cursor.fetchall()
                    cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    busy = cursor.fetchall()[0][0]
                except sqlite3.OperationalError:  # another process is writing
                    busy = 1
                finally:
                    cursor.execute(f"PRAGMA busy_timeout={_BUSY * 1000}")
                    cursor.close()
            if not busy:
                return True
            time.sleep(0.02)
        return False

    def rewrite(self) -> str | None:
        """Rewrite the tables, so that no page holds anything of deleted rows.

        On a server this locks one table after the other.

        Returns:
            None, or why it failed.
        """
        if self.is_sqlite:  # what was deleted is overwritten at once
            return None if self.compact() else "others were reading the ledger's journal"
        names = list(metadata.tables)
        owned = text(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
            "AND relname = ANY(:names) AND pg_has_role(relowner, 'USAGE')"
        )
        autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with autocommit.connect() as connection:
                found = set(connection.scalars(owned, {"names": names}))
                if found != set(names):
                    return "the ledger's user does not own its tables, and may not VACUUM them"
                connection.exec_driver_sql(f"SET lock_timeout = '{_REWRITE_WAIT}s'")
                connection.exec_driver_sql("SET statement_timeout = 0")
                try:
                    for name in names:
                        connection.exec_driver_sql(f'VACUUM (FULL, ANALYZE) "{name}"')
                finally:
                    connection.invalidate()  # its settings are nobody else's
        except SQLAlchemyError as error:
            return f"its tables could not be locked ({type(error).__name__})"
        return None

    def damage(self) -> list[str]:
        """Return what SQLite finds wrong with its file."""
        if not self.is_sqlite:
            return []
        with self.read() as connection:
            rows = connection.exec_driver_sql("PRAGMA integrity_check").all()
        return [str(row[0]) for row in rows if row[0] != "ok"]

    def upsert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """Return an INSERT that has ``on_conflict_do_…``."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def _is_busy(self, error: SQLAlchemyError, reason: str) -> bool:
        if self.is_sqlite:
            return isinstance(error, OperationalError) and reason.endswith("is locked")
        return sqlstate(error) == LOCK_TIMEOUT

    def _timeout_args(self) -> dict[str, Any]:
        """Return the driver's arguments that limit the wait for a connection."""
        known = (
            self.url.get_driver_name().startswith("psycopg")
            and "connect_timeout" not in self.url.query
        )
        return {"connect_timeout": _CONNECT_TIMEOUT} if known else {}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # The first line: PostgreSQL's next ones may repeat the row.
            reason = str(getattr(error, "orig", None) or type(error).__name__).split("\n")[0]
            if self._is_busy(error, reason):
                raise busy(f"the ledger {self} ({reason})", _BUSY) from error
            help_ = "Nothing was changed by the step that failed."
            if "full" in reason or "No space" in reason:
                help_ += " Free some space, or give the memory a budget (max_bytes)."
            elif "malformed" in reason or "not a database" in reason:
                help_ += " The ledger file is damaged: restore it from a backup or an export."
            # Not chained for users to read: the statement is there, but never its parameters.
            raise StoreError(f"The ledger {self} failed: {reason}. {help_}") from error


def _close_to_others(folder: Path) -> None:
    """Remove the permissions that earlier versions left to other users.

    It is called once, so that stores that are shared on purpose stay shared. New journals get the
    ledger's mode.
    """
    remove_others_access(
        *folder.glob(f"{LEDGER_FILE}*"),
        *folder.glob(BACKUPS),
        *folder.glob("segments/*"),
        folder / "locks",
    )
    if (folder / "index" / STATE_FILE).is_file():  # else it is somebody else's
        remove_others_access(folder / "index")


def _configure(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    cursor.execute("PRAGMA page_count")
    if cursor.fetchone() == (0,):  # heeded when the file is made; later, it would wait for writers
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")
    _use_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # what add() returned survives a power cut
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA secure_delete=ON")  # what was deleted is overwritten
    cursor.close()


def _use_write_ahead_log(cursor: sqlite3.Cursor) -> None:
    """Switch to a write-ahead log, which a restored ledger does not have.

    While another process writes or does the same, SQLite refuses at once, whatever the timeout.
    """
    until = time.monotonic() + _BUSY
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if not str(error).endswith("is locked") or time.monotonic() > until:
                raise
            pause()


def _begin(connection: Connection) -> None:
    # A transaction that begins by reading and then writes fails if another wrote in between.
    reading = connection.get_execution_options().get("lag_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

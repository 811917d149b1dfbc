"""Named locks between threads, processes and, with PostgreSQL, machines.

The system releases them when their holder dies, so a crash never blocks the others. A stopped
holder does not die, so nobody waits for a lock without a limit.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import URL, Engine, NullPool, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from lag_integrations.errors import BusyError, StoreError
from lag_integrations.store.foreign_files import refuse_foreign_lock

_Result = TypeVar("_Result")

_WAIT = 10.0
"""Seconds to wait for a named lock."""
_PATIENCE = 60.0
"""Seconds for which `retry_while_busy` tries again."""
_POLL = 0.005
LOCK_TIMEOUT = "55P03"
"""PostgreSQL's error code for having waited for a lock too long."""
_ADVICE = (
    "If a process that holds it is stopped (a debugger, SIGSTOP, a suspended machine), let it go "
    "on or end it, which releases what it holds. What was added before is safe; try again."
)


def acquire_file(path: Path, timeout: float) -> FileLock | None:
    """Lock a lock file; return None if that takes longer than a timeout in seconds.

    Raises:
        StoreError: Something that is not this store's stands in its place.
    """
    refuse_foreign_lock(path)
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    lock = FileLock(str(path), thread_local=False)
    try:
        lock.acquire(timeout=timeout, poll_interval=_POLL)
    except Timeout:
        return None
    return lock


def retry_while_busy(work: Callable[[], _Result]) -> _Result:
    """Call a function, again for up to a minute while it raises `BusyError`; return its result.

    Raises:
        BusyError: It was busy all the time.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except BusyError:
            if time.monotonic() > until:
                raise
            pause()


class Locks:
    """Named locks of one ledger.

    Args:
        url: The ledger's database. A server's advisory locks are used.
        folder: Folder of the lock files, for SQLite; None if the ledger is read-only, so that there
            is nothing to lock.
        connect_args: Settings of a server's driver.
    """

    def __init__(self, url: URL, folder: Path | None, connect_args: Mapping[str, Any]) -> None:
        self._folder = folder
        self._engine: Engine | None = None
        if url.get_backend_name() != "sqlite":
            # A connection each, not from the pool: those who wait for locks would empty it.
            self._engine = create_engine(
                url,
                connect_args=dict(connect_args),
                poolclass=NullPool,
                isolation_level="AUTOCOMMIT",
                hide_parameters=True,
            )

    @contextmanager
    def hold(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Hold a lock.

        Args:
            name: Its name.
            timeout: Seconds to wait at most; `_WAIT` by default.

        Raises:
            BusyError: Others hold it for longer than that.
            StoreError: The ledger's server fails to lock.
        """
        timeout = _WAIT if timeout is None else timeout
        if self._engine is not None:
            with self._hold_advisory(self._engine, name, timeout):
                yield
        elif self._folder is None:
            yield
        else:
            path = self._folder / f"{name}.lock"
            lock = acquire_file(path, timeout)
            if lock is None:
                raise busy(f"{path} (`fuser` names who)", timeout)
            try:
                yield
            finally:
                lock.release()

    @contextmanager
    def try_hold(self, names: Collection[str]) -> Iterator[set[str]]:
        """Hold those of several locks that are free, without waiting; return their names."""
        with ExitStack() as stack:
            if self._engine is not None:
                try:
                    connection = stack.enter_context(self._engine.connect())  # one for all of them
                    held = {
                        name
                        for name in names
                        if connection.execute(
                            select(func.pg_try_advisory_lock(_key(name)))
                        ).scalar_one()
                    }
                except SQLAlchemyError as error:
                    raise _no_lock(error) from error
            elif self._folder is None:
                held = set(names)
            else:
                held = set()
                for name in names:
                    lock = acquire_file(self._folder / f"{name}.lock", 0)
                    if lock is not None:
                        stack.callback(lock.release)
                        held.add(name)
            yield held

    @contextmanager
    def _hold_advisory(self, engine: Engine, name: str, timeout: float) -> Iterator[None]:
        with ExitStack() as stack:
            try:
                # Its end ends the session, and with it the lock.
                connection = stack.enter_context(engine.connect())
                limit = str(max(1, round(timeout * 1_000)))  # 0 would mean none
                connection.execute(select(func.set_config("lock_timeout", limit, False)))
                connection.execute(select(func.pg_advisory_lock(_key(name))))
            except SQLAlchemyError as error:
                if sqlstate(error) == LOCK_TIMEOUT:
                    what = f"the advisory lock {name!r} (see pg_locks)"
                    raise busy(what, timeout) from error
                raise _no_lock(error) from error
            yield


def sqlstate(error: SQLAlchemyError) -> str | None:
    """Return PostgreSQL's code for an error, whichever driver reports it."""
    cause = getattr(error, "orig", None)
    code: str | None = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code


def busy(what: str, timeout: float) -> BusyError:
    """Return the error for having waited for some seconds."""
    return BusyError(f"Others have held {what} for more than {timeout:g} s. {_ADVICE}")


def _no_lock(error: SQLAlchemyError) -> StoreError:
    return StoreError(f"The ledger's server gives no lock ({type(error).__name__}).")


def _key(name: str) -> int:
    digest = hashlib.sha256(f"lag_integrations {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def pause() -> None:
    """Sleep between two tries for locks that others hold."""
    time.sleep(4 * _POLL)

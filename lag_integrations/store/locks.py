"""Locks by name that hold between threads, processes, and (PostgreSQL) machines.

The system releases them when their holder dies, so a crash never blocks the others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import URL, Engine, NullPool, create_engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from lag_integrations.errors import StoreError

_POLL = 0.005


def acquire_file(path: Path, timeout: float = -1) -> FileLock | None:
    """Lock a file of its own; None if that took longer than the timeout (seconds, -1: forever)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path), thread_local=False)
    try:
        lock.acquire(timeout=timeout, poll_interval=_POLL)
    except Timeout:
        return None
    return lock


class Locks:
    """Named locks of one ledger.

    Args:
        url: The ledger's database; its advisory locks are used where it has them.
        folder: For SQLite, where lock files are kept.
    """

    def __init__(self, url: URL, folder: Path) -> None:
        self._folder = folder
        self._engine: Engine | None = None
        if url.get_backend_name() != "sqlite":
            # A connection each, not from the pool: those who wait for locks would empty it.
            self._engine = create_engine(
                url, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True
            )

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock; gives False, without holding it, if it is taken and ``wait`` is false."""
        if self._engine is None:
            with self._hold_file(name, wait) as held:
                yield held
        else:
            with self._hold_advisory(self._engine, name, wait) as held:
                yield held

    @contextmanager
    def hold_free(self, names: Collection[str]) -> Iterator[set[str]]:
        """Hold those of several locks that are free, without waiting; gives which they are."""
        if self._engine is None:
            with ExitStack() as stack:
                yield {name for name in names if stack.enter_context(self._hold_file(name, False))}
            return
        with ExitStack() as stack:
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
            yield held

    @contextmanager
    def _hold_file(self, name: str, wait: bool) -> Iterator[bool]:
        lock = acquire_file(self._folder / f"{name}.lock", -1 if wait else 0)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                lock.release()

    @contextmanager
    def _hold_advisory(self, engine: Engine, name: str, wait: bool) -> Iterator[bool]:
        key = _key(name)
        take = func.pg_advisory_lock(key) if wait else func.pg_try_advisory_lock(key)
        try:
            connection = engine.connect()
            taken = connection.execute(select(take)).scalar_one()
        except SQLAlchemyError as error:
            raise _no_lock(error) from error
        try:
            yield wait or bool(taken)
        finally:
            connection.close()  # which ends the session, and with it the lock


def _no_lock(error: SQLAlchemyError) -> StoreError:
    return StoreError(f"The ledger's server gives no lock ({type(error).__name__}).")


def _key(name: str) -> int:
    digest = hashlib.sha256(f"lag_integrations {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def wait_a_little() -> None:
    """Between two tries for locks that others hold."""
    time.sleep(4 * _POLL)

"""Locks by name that hold between threads, processes, and (PostgreSQL) machines.

The system releases them when their holder dies, so a crash never blocks the others.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Engine, func, select

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
        engine: The ledger's database; its advisory locks are used where it has them.
        folder: For SQLite, where lock files are kept.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder

    @contextmanager
    def hold(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock; gives False, without holding it, if it is taken and ``wait`` is false."""
        hold = self._hold_file if self._engine.dialect.name == "sqlite" else self._hold_advisory
        with hold(name, wait) as held:
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
    def _hold_advisory(self, name: str, wait: bool) -> Iterator[bool]:
        digest = hashlib.sha256(f"lag_integrations {name}".encode()).digest()
        key = int.from_bytes(digest[:8], "big", signed=True)
        # A connection of its own: the lock lives as long as the session.
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not wait:
                held = bool(connection.execute(select(func.pg_try_advisory_lock(key))).scalar_one())
            else:
                connection.execute(select(func.pg_advisory_lock(key)))
                held = True
            try:
                yield held
            finally:
                if held:
                    connection.execute(select(func.pg_advisory_unlock(key)))


def wait_a_little() -> None:
    """Between two tries for locks that others hold."""
    time.sleep(4 * _POLL)

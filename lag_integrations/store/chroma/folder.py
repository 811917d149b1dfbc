"""An embedded Chroma database in a folder that processes share."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

from lag_integrations.errors import BusyError, StoreError
from lag_integrations.store.chroma.access import client_settings
from lag_integrations.store.chroma.files import (
    WRITING,
    blank,
    has_database,
    read_state,
    refuse_foreign,
    remove_database,
    vacuum,
    write_state,
)
from lag_integrations.store.chroma.fork import note_use, refuse_forked
from lag_integrations.store.locks import acquire_file, busy

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_READ_WAIT, _WRITE_WAIT = 2.0, 10.0
"""Seconds to wait for the folder. Readers can compare all embeddings instead."""
_BUSY_SECONDS = 5.0
"""Seconds for which readers do not wait, after one has waited for nothing."""


class ChromaFolder:
    """An embedded Chroma database that any number of processes use, one at a time.

    Chroma's embedded client does not see what other processes wrote, and two of them can destroy
    the files (chroma #7090). So a lock is held while it is used, and it is opened again after
    another process has written. A state file tells who wrote last. If its writer died while
    writing, the database, which is derived, is replaced by an empty one.

    There is one object for each process and folder (see `at`), as Chroma has one client a folder.

    Only files that Chroma made are removed, and only from a folder that has the state file. A link
    in the folder's place is refused, since it may lead to somebody else's files.

    Args:
        folder: Folder of the database.
        lock: The lock file, outside of it.
    """

    served: ClassVar[bool] = False
    _open: ClassVar[dict[Path, ChromaFolder]] = {}
    _parents: ClassVar[list[dict[Path, ChromaFolder]]] = []
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Path, lock: Path) -> None:
        self._folder = folder
        self._lock_file = lock
        self._thread_lock = threading.RLock()
        self._client: ClientAPI | None = None
        self._state = ""
        self._users = 0
        self._process = os.getpid()
        self._busy_until = 0.0

    @classmethod
    def at(cls, folder: Path, lock: Path) -> ChromaFolder:
        """Return this process's object of a folder. Each call needs a call of `close`.

        Raises:
            StoreError: Something that is not this store's stands in the folder's place.
        """
        folder = folder.parent.resolve() / folder.name  # a link in its own place is not followed
        with cls._guard:
            found = cls._open.get(folder)
            if found is None:
                refuse_foreign(folder)
                found = cls._open[folder] = cls(folder, lock)
            found._users += 1
            return found

    @classmethod
    def disown_open(cls) -> None:
        """Keep, after a fork, the parent's objects without using them: freeing them would hang."""
        cls._parents.append(cls._open)
        cls._open, cls._guard = {}, threading.Lock()  # a thread that is not here may have held it

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """Return a client that sees everything written so far. Others wait until the block ends.

        Raises:
            BusyError: Others use the folder for longer than is waited.
            ForkedError: Chroma was used before this process was forked.
            StoreError: The store is closed.
        """
        with self._exclusive(_WRITE_WAIT if write else self._read_wait()):
            if self._users <= 0:
                raise StoreError("The store is closed; open it again.")
            client = self._current()
            if write:
                self._note(WRITING)
            yield client
            if write:
                blank(self._folder)
                self._note(uuid4().hex)

    def reset(self) -> None:
        """Replace the database by an empty one.

        Raises:
            BusyError: Others use the folder for longer than is waited.
            ForkedError: Chroma was used before this process was forked.
        """
        with self._exclusive(_WRITE_WAIT):
            self._remove()

    def _read_wait(self) -> float:
        return _READ_WAIT if time.monotonic() >= self._busy_until else 0.0

    @contextmanager
    def _exclusive(self, wait: float) -> Iterator[None]:
        """Keep other threads and processes out of the folder."""
        refuse_forked()
        until = time.monotonic() + wait
        if not self._thread_lock.acquire(timeout=wait):
            raise self._busy(wait)
        try:
            lock = acquire_file(self._lock_file, max(0.0, until - time.monotonic()))
            if lock is None:
                raise self._busy(wait)
            try:
                yield
            finally:
                lock.release()
        finally:
            self._thread_lock.release()

    def _busy(self, wait: float) -> BusyError:
        if wait:
            self._busy_until = time.monotonic() + _BUSY_SECONDS
        return busy(f"the index, by {self._lock_file} (`fuser` names who),", wait)

    def rewrite(self) -> bool:
        """Remove deleted collections from the disk, where Chroma leaves their vectors.

        Returns:
            Whether that could be done.

        Raises:
            BusyError: Others use the folder for longer than is waited.
            ForkedError: Chroma was used before this process was forked.
        """
        with self._exclusive(_WRITE_WAIT):
            refuse_foreign(self._folder)
            self._release()
            if has_database(self._folder):
                self._note(WRITING)
                if vacuum(self._folder):
                    self._note(uuid4().hex)
                # Else the next user replaces it, which leaves nothing either.
        return True

    def close(self) -> None:
        """Release the database, if no other user of this process has it."""
        with self._guard:
            self._users -= 1
            if self._users > 0:
                return
            if self._open.get(self._folder) is self:
                del self._open[self._folder]
        # Else some thread is stuck in it, and keeps it.
        if self._thread_lock.acquire(timeout=_WRITE_WAIT):
            try:
                self._release()
            finally:
                self._thread_lock.release()

    def _current(self) -> ClientAPI:
        refuse_foreign(self._folder)
        state = read_state(self._folder)
        if state == WRITING:
            self._remove()
            state = ""
        if self._client is None or state != self._state or not state:
            self._release()
            if not state:
                self._note(uuid4().hex)
            else:
                self._state = state
                blank(self._folder)  # an earlier version wrote it
            self._client = _open_client(self._folder)
        return self._client

    def _note(self, state: str) -> None:
        write_state(self._folder, state)
        self._state = state

    def _remove(self) -> None:
        self._release()
        refuse_foreign(self._folder)
        self._note(WRITING)  # other processes' clients must not be used any more
        remove_database(self._folder)

    def _release(self) -> None:
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None


def _open_client(folder: Path) -> ClientAPI:
    import chromadb

    note_use()
    return chromadb.PersistentClient(str(folder), settings=client_settings())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ChromaFolder.disown_open)

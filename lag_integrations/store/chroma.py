"""Ways to reach Chroma: a folder that processes share, or a server."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from lag_integrations.errors import BusyError, ForkedError, StoreError
from lag_integrations.store.locks import acquire_file, busy

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import Settings

STATE_FILE = "lag-state"
_WRITING = "writing"
_DATABASE = "chroma.sqlite3"
_READ_WAIT, _WRITE_WAIT = 2.0, 10.0
"""Seconds to wait for the folder. Who reads can compare all embeddings instead."""
_REMEMBERED = 5.0
"""Seconds for which readers do not wait again, after one has waited for nothing."""
_ANSWER = 30.0
"""Seconds for which a server may be silent."""


class SharedFolder:
    """An embedded Chroma database that any number of processes use, one at a time.

    Chroma's embedded client does not see what other processes wrote, and two of them can destroy
    the files (chroma #7090). So a lock is held while it is used, and it is opened again after
    another process has written. A state file tells who wrote last; if it says that a writer died
    while writing, the database, which is derived, is made again.

    One object a process and folder (see `at`): Chroma itself keeps one client a folder.

    Only what Chroma made is ever removed, and only from a folder that has the state file. A link in
    the folder's place is refused, since it may lead to somebody else's files.

    A process forked from one that has used Chroma never does: the threads of its client, which
    outlast its closing, are not there any more, and it would wait for them forever.

    Args:
        folder: Folder of the database.
        lock: The lock file, outside of it.
    """

    served: ClassVar[bool] = False
    _open: ClassVar[dict[Path, SharedFolder]] = {}
    _parents: ClassVar[list[dict[Path, SharedFolder]]] = []
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
    def at(cls, folder: Path, lock: Path) -> SharedFolder:
        """Return the object of a folder in this process; close it as often as it was asked for.

        Raises:
            StoreError: Something that is not this store's stands in the folder's place.
        """
        folder = folder.parent.resolve() / folder.name  # a link in its own place is not followed
        with cls._guard:
            found = cls._open.get(folder)
            if found is None:
                _refuse_foreign(folder)
                found = cls._open[folder] = cls(folder, lock)
            found._users += 1
            return found

    @classmethod
    def forget_parents(cls) -> None:
        """After a fork: what was open is the parent's, and is not let go of, which would hang."""
        cls._parents.append(cls._open)
        cls._open, cls._guard = {}, threading.Lock()  # a thread that is not here may have held it

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """A client that sees everything written so far; others wait until the block ends.

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
                self._note(_WRITING)
            yield client
            if write:
                self._note(uuid4().hex)

    def reset(self) -> None:
        """Put the database aside and begin an empty one.

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
        """Keep other threads and processes out."""
        _refuse_forked()
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
            self._busy_until = time.monotonic() + _REMEMBERED
        return busy(f"the index, by {self._lock_file} (`fuser` names who),", wait)

    def rewrite(self) -> bool:
        """Leave nothing of removed collections on the disk; Chroma itself leaves their vectors.

        Returns:
            Whether that could be done.

        Raises:
            BusyError: Others use the folder for longer than is waited.
            ForkedError: Chroma was used before this process was forked.
        """
        with self._exclusive(_WRITE_WAIT):
            _refuse_foreign(self._folder)
            self._release()
            if (self._folder / _DATABASE).exists():
                self._note(_WRITING)
                if _vacuum(self._folder):
                    self._note(uuid4().hex)
                # Else it is made again by whoever is next, which leaves nothing either.
        return True

    def close(self) -> None:
        """Release the database, when its last user does."""
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
        _refuse_foreign(self._folder)
        state = self._read_state()
        if state == _WRITING:
            self._remove()
            state = ""
        if self._client is None or state != self._state or not state:
            self._release()
            if not state:
                self._note(uuid4().hex)
            else:
                self._state = state
            self._client = _persistent(self._folder)
        return self._client

    def _read_state(self) -> str:
        try:
            return (self._folder / STATE_FILE).read_text("ascii")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):  # damaged: whoever wrote last may have died
            return _WRITING

    def _note(self, state: str) -> None:
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        scratch = self._folder / f".{STATE_FILE}"
        scratch.write_text(state, "ascii")
        os.replace(scratch, self._folder / STATE_FILE)
        self._state = state

    def _remove(self) -> None:
        """Remove the database, but neither the state file nor what else lies beside it."""
        self._release()
        _refuse_foreign(self._folder)
        self._note(_WRITING)  # other processes' clients must not be used any more
        for entry in filter(_is_of_chroma, list(self._folder.iterdir())):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink()

    def _release(self) -> None:
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None


class Unreadable:
    """The embedded database of a store that can only be read: Chroma would write into it."""

    served: ClassVar[bool] = False

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """Refuse: all embeddings are compared instead."""
        raise StoreError("The index of a store that can only be read cannot be used.")
        yield

    def rewrite(self) -> bool:
        """Refuse."""
        return False

    def reset(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Server:
    """A Chroma server, which takes care of concurrent clients itself.

    Args:
        connect: Makes the client.
        write_lock: Held while writing, so that two processes do not merge the same logs.
        owned: Whether the client is ours to close.
    """

    served: ClassVar[bool] = True

    def __init__(
        self,
        connect: Callable[[], ClientAPI],
        write_lock: Callable[[], AbstractContextManager[None]],
        *,
        owned: bool = True,
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._write_lock = write_lock
        self._client: ClientAPI | None = None

    @classmethod
    def of_url(cls, url: str, write_lock: Callable[[], AbstractContextManager[None]]) -> Server:
        """A server by its ``http://`` or ``https://`` URL.

        Raises:
            StoreError: It is not such a URL.
        """
        parts = urlsplit(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise StoreError(f"{url!r} is not the URL of a Chroma server, like http://host:8000.")

        def connect() -> ClientAPI:
            import chromadb
            import httpx

            ssl = parts.scheme == "https"
            # Chroma's own client would wait for an answer forever, while it connects already.
            httpx.get(f"{parts.scheme}://{parts.netloc}/api/v2/heartbeat", timeout=_ANSWER)
            client = chromadb.HttpClient(
                host, parts.port or (443 if ssl else 8000), ssl=ssl, settings=_settings()
            )
            client._server._session.timeout = _ANSWER
            return client

        return cls(connect, write_lock)

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """The client; writers wait for each other.

        Raises:
            BusyError: Others write for longer than is waited.
            ForkedError: It is an embedded client, and was used before this process was forked.
        """
        if self._client is None:
            self._client = self._connect()
        if "rust" in self._client.get_settings().chroma_api_impl:  # one that a user embeds
            _note_use()
        if not write:
            yield self._client
            return
        with self._write_lock():
            yield self._client

    def reset(self) -> None:
        """A server is not ours to reset."""
        raise StoreError("The Chroma server does not answer as it should; restart or repair it.")

    def rewrite(self) -> bool:
        """A server's files are not ours to write; return False."""
        return False

    def close(self) -> None:
        """Release the connection."""
        if self._client is not None and self._owned:
            self._client.close()
        self._client = None


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that this store did not make.

    Raises:
        StoreError: It is a link or a file, or holds files but not the store's state file.
    """
    if folder.is_symlink():
        problem = "is a link"
    elif not folder.exists() or _is_plain_file(folder / STATE_FILE):
        return
    elif not folder.is_dir():
        problem = "is not a folder"
    elif all(entry.name == f".{STATE_FILE}" for entry in folder.iterdir()):
        return  # empty, or its maker died before it wrote anything else
    else:
        problem = "holds files that are not this store's"
    raise StoreError(
        f"The memory keeps its index in {folder}, but this {problem}. Nothing was changed. Choose "
        "another folder for the memory, or move this one away."
    )


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_of_chroma(entry: Path) -> bool:
    """Whether an entry of the folder is one that Chroma makes: its database, or an index of it."""
    if entry.name.startswith(_DATABASE):
        return not entry.is_dir()
    try:
        return str(UUID(entry.name)) == entry.name and entry.is_dir()
    except ValueError:
        return False


def _vacuum(folder: Path) -> bool:
    """Write a closed database anew, and remove the indexes of collections that are gone.

    Returns:
        False if it is none that we understand.
    """
    try:
        with closing(sqlite3.connect(folder / _DATABASE, timeout=1)) as connection:
            live = {row[0] for row in connection.execute("SELECT id FROM segments")}
            connection.execute("VACUUM")
    except sqlite3.Error:
        return False
    for entry in filter(_is_of_chroma, list(folder.iterdir())):
        if entry.is_dir() and not entry.is_symlink() and entry.name not in live:
            shutil.rmtree(entry, ignore_errors=True)
    return True


class _Use:
    """Whether this process, or one that it was forked from, has used an embedded Chroma."""

    here = False
    before_fork = False


def _note_use() -> None:
    _refuse_forked()
    _Use.here = True


def _refuse_forked() -> None:
    if _Use.before_fork:
        raise ForkedError(
            "This process was forked from one that had used Chroma, which hangs in such a process. "
            "Start processes by 'spawn' or 'forkserver', or fork before a memory is opened."
        )


def _after_fork() -> None:
    _Use.before_fork = _Use.before_fork or _Use.here
    SharedFolder.forget_parents()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _persistent(folder: Path) -> ClientAPI:
    import chromadb

    _note_use()
    return chromadb.PersistentClient(str(folder), settings=_settings())


def _settings() -> Settings:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)

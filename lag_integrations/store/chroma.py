"""Ways to reach Chroma: a folder that processes share, or a server."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from lag_integrations.errors import StoreError
from lag_integrations.store.locks import acquire_file

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.config import Settings

_STATE = "lag-state"
_WRITING = "writing"
_DATABASE = "chroma.sqlite3"


class SharedFolder:
    """An embedded Chroma database that any number of processes use, one at a time.

    Chroma's embedded client does not see what other processes wrote, and two of them can destroy
    the files (chroma #7090). So a lock is held while it is used, and it is opened again after
    another process has written. A state file tells who wrote last; if it says that a writer died
    while writing, the database, which is derived, is made again.

    One object a process and folder (see `at`): Chroma itself keeps one client a folder.

    Only what Chroma made is ever removed, and only from a folder that has the state file. A link in
    the folder's place is refused, since it may lead to somebody else's files.

    Args:
        folder: Folder of the database.
        lock: The lock file, outside of it.
    """

    _open: ClassVar[dict[Path, SharedFolder]] = {}
    _guard = threading.Lock()

    def __init__(self, folder: Path, lock: Path) -> None:
        self._folder = folder
        self._lock_file = lock
        self._thread_lock = threading.RLock()
        self._client: ClientAPI | None = None
        self._state = ""
        self._users = 0
        self._process = os.getpid()

    @classmethod
    def at(cls, folder: Path, lock: Path) -> SharedFolder:
        """Return the object of a folder in this process; close it as often as it was asked for.

        Raises:
            StoreError: Something that is not this store's stands in the folder's place.
        """
        folder = folder.parent.resolve() / folder.name  # a link in its own place is not followed
        with cls._guard:
            found = cls._open.get(folder)
            if found is None or found._process != os.getpid():  # a fork cannot use its parent's
                _refuse_foreign(folder)
                found = cls._open[folder] = cls(folder, lock)
            found._users += 1
            return found

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """A client that sees everything written so far; others wait until the block ends."""
        with self._thread_lock:
            if self._users <= 0:
                raise StoreError("The store is closed; open it again.")
            lock = acquire_file(self._lock_file)
            assert lock is not None  # without a timeout
            try:
                client = self._current()
                if write:
                    self._note(_WRITING)
                yield client
                if write:
                    self._note(uuid4().hex)
            finally:
                lock.release()

    def reset(self) -> None:
        """Put the database aside and begin an empty one."""
        with self._thread_lock:
            lock = acquire_file(self._lock_file)
            assert lock is not None
            try:
                self._remove()
            finally:
                lock.release()

    def close(self) -> None:
        """Release the database, when its last user does."""
        with self._guard:
            self._users -= 1
            if self._users > 0:
                return
            if self._open.get(self._folder) is self:
                del self._open[self._folder]
        with self._thread_lock:
            self._release()

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
            return (self._folder / _STATE).read_text("ascii")
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):  # damaged: whoever wrote last may have died
            return _WRITING

    def _note(self, state: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = self._folder / f".{_STATE}"
        scratch.write_text(state, "ascii")
        os.replace(scratch, self._folder / _STATE)
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


class Server:
    """A Chroma server, which takes care of concurrent clients itself.

    Args:
        connect: Makes the client.
        write_lock: Held while writing, so that two processes do not merge the same logs.
        owned: Whether the client is ours to close.
    """

    def __init__(
        self,
        connect: Callable[[], ClientAPI],
        write_lock: Callable[[], AbstractContextManager[bool]],
        *,
        owned: bool = True,
    ) -> None:
        self._connect = connect
        self._owned = owned
        self._write_lock = write_lock
        self._client: ClientAPI | None = None

    @classmethod
    def of_url(cls, url: str, write_lock: Callable[[], AbstractContextManager[bool]]) -> Server:
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

            ssl = parts.scheme == "https"
            return chromadb.HttpClient(
                host, parts.port or (443 if ssl else 8000), ssl=ssl, settings=_settings()
            )

        return cls(connect, write_lock)

    @contextmanager
    def session(self, *, write: bool) -> Iterator[ClientAPI]:
        """The client; writers wait for each other."""
        if self._client is None:
            self._client = self._connect()
        if not write:
            yield self._client
            return
        with self._write_lock():
            yield self._client

    def reset(self) -> None:
        """A server is not ours to reset."""
        raise StoreError("The Chroma server does not answer as it should; restart or repair it.")

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
    elif not folder.exists() or _is_plain_file(folder / _STATE):
        return
    elif not folder.is_dir():
        problem = "is not a folder"
    elif all(entry.name == f".{_STATE}" for entry in folder.iterdir()):
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


def _persistent(folder: Path) -> ClientAPI:
    import chromadb

    return chromadb.PersistentClient(str(folder), settings=_settings())


def _settings() -> Settings:
    from chromadb.config import Settings

    return Settings(anonymized_telemetry=False)

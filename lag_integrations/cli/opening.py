"""Opening what a command needs of a store, and no more: torch takes seconds to import."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lag_integrations.errors import LogNotFoundError, StoreError

if TYPE_CHECKING:
    from lag_integrations import KVLogMemory
    from lag_integrations.store.database import Database
    from lag_integrations.store.ledger import Ledger
    from lag_integrations.store.store import LogStore

_SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Place:
    """Where a store is; see `KVLogMemory`.

    Attributes:
        path: Its folder.
        namespace: The tenant.
        ledger: URL of the ledger, if it is not in the folder.
        segments: URL of the segments, if they are not in the folder.
        index: URL of a Chroma server.
    """

    path: Path
    namespace: str = "default"
    ledger: str | None = None
    segments: str | None = None
    index: str | None = None

    def require(self) -> None:
        """Refuse a place where there is no store: a typo must not make an empty one.

        Raises:
            StoreError: There is none.
        """
        from lag_integrations.store.database import LEDGER_FILE

        there = self.path.is_dir() if self.ledger else (self.path / LEDGER_FILE).is_file()
        if not there:
            raise StoreError(f"There is no store at {self.path}. `kvlog add` makes one.")

    @contextmanager
    def ledger_only(self, *, create: bool = False) -> Iterator[tuple[Database, Ledger]]:
        """The ledger alone, which is enough to read, count and judge logs."""
        from lag_integrations.store.database import Database
        from lag_integrations.store.ledger import Ledger
        from lag_integrations.store.log_id import validate_namespace

        validate_namespace(self.namespace)
        if create:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
        else:
            self.require()
        database = Database(self.ledger or None, self.path)
        try:
            yield database, Ledger(database, self.namespace)
        finally:
            database.close()

    @contextmanager
    def store(self, *, create: bool = False) -> Iterator[LogStore]:
        """The whole store, without an embedder."""
        from lag_integrations.store.store import LogStore

        if not create:
            self.require()
        store = LogStore(
            self.path,
            self.namespace,
            ledger=self.ledger or None,
            segments=self.segments or None,
            index=self.index or None,
        )
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def memory(self, embedder: str | None, **settings: Any) -> Iterator[KVLogMemory]:
        """The memory, with an embedder."""
        from lag_integrations import KVLogMemory

        self.require()
        with KVLogMemory(
            self.path,
            namespace=self.namespace,
            embedder=embedder or None,
            ledger=self.ledger or None,
            segments=self.segments or None,
            index=self.index or None,
            **settings,
        ) as memory:
            yield memory


def full_id(ledger: Ledger, given: str) -> str:
    """The id of the one log that is meant.

    Raises:
        LogNotFoundError: There is none.
        StoreError: Several begin so, or too little is given to be meant.
    """
    if len(given) < _SHORTEST_PREFIX:
        raise StoreError(f"{given!r} is too short; give at least {_SHORTEST_PREFIX} digits of it.")
    found = ledger.ids_with_prefix(given)
    if not found:
        raise LogNotFoundError(f"There is no log {given[:32]} in namespace {ledger.namespace}.")
    if len(found) > 1:
        raise StoreError(f"Several logs begin with {given}; give more digits of the id.")
    return found[0]

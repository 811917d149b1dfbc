"""The options that say where a store is, and opening as much of it as a command needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lag_integrations.cli.output import progress_bar
from lag_integrations.errors import LogNotFoundError, StoreError

if TYPE_CHECKING:
    from lag_integrations import KVLogMemory
    from lag_integrations.store.database import Database
    from lag_integrations.store.ledger import Ledger
    from lag_integrations.store.store import LogStore

_SHORTEST_PREFIX = 4
_PANEL = "Where the store is"

StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="Folder of the store.", show_default=False)
]
LogId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="Id of a log, or at least 4 digits that it begins with.",
        show_default=False,
    ),
]
IDS = typer.Argument(
    metavar="ID...", help="Ids of logs, or at least 4 digits that one begins with."
)
AllNamespaces = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        envvar="KVLOG_NAMESPACE",
        help="Look at this tenant only; all of them by default.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Embedder = Annotated[
    str | None,
    typer.Option(
        "--embedder",
        envvar="KVLOG_EMBEDDER",
        help="Name or folder of a sentence-transformers model; all-MiniLM-L6-v2 by default.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class Place:
    """Where a store is; the fields are options of every command that is `at_store`."""

    path: StorePath
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            "-n",
            envvar="KVLOG_NAMESPACE",
            help="Tenant whose logs are meant.",
            rich_help_panel=_PANEL,
        ),
    ] = "default"
    ledger: Annotated[
        str | None,
        typer.Option(
            "--ledger",
            envvar="KVLOG_LEDGER",
            help="SQLAlchemy URL of the ledger, if it is not in the folder.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    segments_url: Annotated[
        str | None,
        typer.Option(
            "--segments-url",
            envvar="KVLOG_SEGMENTS",
            help="Folder or fsspec URL of the segments, if they are not in the folder.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    index: Annotated[
        str | None,
        typer.Option(
            "--index",
            envvar="KVLOG_INDEX",
            help="URL of a Chroma server, if the index is not in the folder.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def require(self) -> None:
        """Refuse a place where there is no store: a typo must not make an empty one.

        Raises:
            StoreError: There is none; says what is there instead.
        """
        from lag_integrations.store.database import LEDGER_FILE

        if not self.path.exists():
            raise StoreError(
                f"There is no folder {self.path}. Check the path; `kvlog add` makes a store."
            )
        if not self.path.is_dir():
            raise StoreError(f"{self.path} is a file. Give the folder of a store.")
        if not self.ledger and not (self.path / LEDGER_FILE).is_file():
            raise StoreError(
                f"The folder {self.path} holds no store: it has no {LEDGER_FILE}. Give the folder "
                "that has one, or --ledger if the ledger is in a database elsewhere."
            )

    @contextmanager
    def ledger_only(self, *, create: bool = False) -> Iterator[tuple[Database, Ledger]]:
        """Open the ledger alone, which is enough to read, count and judge logs."""
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
        """Open the whole store, without an embedder."""
        from lag_integrations.store.store import LogStore

        if not create:
            self.require()
        store = LogStore(
            self.path,
            self.namespace,
            ledger=self.ledger or None,
            segments=self.segments_url or None,
            index=self.index or None,
        )
        try:
            yield store
        finally:
            store.close()

    def open_namespace(self, embedder: str | None) -> Callable[[str], KVLogMemory]:
        """Return what opens the memory of a namespace; the store is made if there is none."""
        from lag_integrations import KVLogMemory

        return lambda namespace: KVLogMemory(
            self.path,
            namespace=namespace,
            embedder=embedder or None,
            ledger=self.ledger or None,
            segments=self.segments_url or None,
            index=self.index or None,
        )

    @contextmanager
    def memory(self, embedder: str | None, **settings: Any) -> Iterator[KVLogMemory]:
        """Open the memory, with an embedder."""
        from lag_integrations import KVLogMemory

        self.require()
        with KVLogMemory(
            self.path,
            namespace=self.namespace,
            embedder=embedder or None,
            ledger=self.ledger or None,
            segments=self.segments_url or None,
            index=self.index or None,
            **settings,
        ) as memory:
            yield memory


def at_store(command: Callable[..., None], *, tenant: bool = True) -> Callable[..., None]:
    """Give a command the options of `Place`, and pass them to it as its parameter ``place``.

    A parameter of the command that has the name of a field stands for that field's option, and is
    passed to the command as well. If it is the path, and optional, ``place`` is None without it.

    Args:
        command: The command.
        tenant: Whether it is about one namespace, not about the whole store.
    """
    own = {**inspect.signature(command, eval_str=True).parameters}
    del own["place"]
    fields = {**inspect.signature(Place, eval_str=True).parameters}
    if not tenant:
        del fields["namespace"]
    shared = {name: field for name, field in fields.items() if name not in own}

    @wraps(command)
    def run(**given: Any) -> None:
        where = {name: given[name] for name in fields if given[name] is not None}
        mine = {name: given[name] for name in own}
        command(place=Place(**where) if "path" in where else None, **mine)

    # Arguments are read in this order: the store comes first.
    first = {name: shared.pop(name) for name in ("path",) if name in shared}
    options = {**first, **own, **shared}
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in options.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {name: one.annotation for name, one in options.items()}
    return run


def flush(memory: KVLogMemory) -> None:
    """Embed what waits for it, under a progress bar."""
    with progress_bar("Embedding") as progress:
        memory.flush(progress)


def full_id(ledger: Ledger, given: str) -> str:
    """Return the id of the one log that is meant.

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

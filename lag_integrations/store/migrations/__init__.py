"""Migrations of the ledger's schema, by Alembic."""

from __future__ import annotations

import sqlite3
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from lag_integrations.errors import StoreError
from lag_integrations.store.file_permissions import create_private_file
from lag_integrations.store.locks import Locks
from lag_integrations.store.schema import metadata
from lag_integrations.store.time_limits import lift_time_limits

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0007"
"""The newest revision; a test holds it equal to the newest file in ``versions/``."""
_KNOWN = ("0002", "0003", "0004", "0005", "0006", "0007")
BACKUPS = "backup-[0-9][0-9][0-9][0-9]-*Z.sqlite"
"""Pattern of the names of backups of older ledgers, in their folder."""
_MIGRATION_WAIT = 600.0
"""Seconds for which other processes that open the ledger wait for its migration."""
_VERSION_TABLE = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
    "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"  # as Alembic makes it
)


def bring_up_to_date(
    engine: Engine, locks: Locks, folder: Path, *, read_only: bool, backed_up: bool = False
) -> str | None:
    """Create the schema in an empty database, or migrate an older ledger.

    An SQLite file is backed up first. A server's database is migrated only if `backed_up`.

    Args:
        engine: Connects to the database.
        locks: Locks that keep other processes from doing the same.
        folder: Folder for the backup of an SQLite file.
        read_only: Whether the database cannot be written.
        backed_up: Whether there is a backup already.

    Returns:
        The revision that it was migrated from; None if it was not migrated.

    Raises:
        StoreError: This version does not know the ledger's schema, or it is on a server and older.
    """
    name = _name(engine)
    found = _revision(engine)
    if found == HEAD:
        return None
    if read_only:
        raise StoreError(
            f"{name} has the schema version {found}, not {HEAD}, and can only be read. Copy "
            "the folder to where it can be written, and open it there."
        )
    with locks.hold("migrate", timeout=_MIGRATION_WAIT):
        found = _revision(engine)  # another process may have been faster
        if found == HEAD:
            return None
        if found is None:
            with engine.begin() as connection:
                lift_time_limits(connection)
                metadata.create_all(connection)
                connection.execute(text(_VERSION_TABLE))
                connection.execute(text(f"INSERT INTO alembic_version VALUES ('{HEAD}')"))
            return None
        if found not in _KNOWN:
            raise StoreError(
                f"{name} has schema version {found}; this version of lag_integrations knows "
                f"{_KNOWN[0]} to {HEAD}. Upgrade lag_integrations, or use the one that wrote it."
            )
        backup = None
        if engine.dialect.name == "sqlite" and not backed_up:
            backup = folder / f"backup-{found}-{_now()}.sqlite"
            _back_up(Path(name), backup)
        elif not backed_up:
            raise StoreError(
                f"{name} has the older schema version {found}. Back it up (pg_dump), then run "
                "`kvlog migrate --backed-up`."
            )
        try:
            _migrate(engine)
        except Exception as error:
            if backup is not None:
                backup.unlink()  # as good as the ledger itself
            raise StoreError(
                f"{name} could not be migrated from schema version {found} "
                f"({type(error).__name__}). Nothing was changed."
            ) from error
    return found


def _revision(engine: Engine) -> str | None:
    """Return the revision of a ledger; None for an empty database."""
    with engine.connect().execution_options(lag_read=True) as connection:
        tables = set(inspect(connection).get_table_names())
        if "alembic_version" in tables:
            return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
        if tables & set(metadata.tables):
            raise StoreError(
                f"{_name(engine)} holds tables with the names of a ledger's that are none. Give an "
                "empty folder or database."
            )
    return None


def _name(engine: Engine) -> str:
    url = engine.url
    return str(url.database) if engine.dialect.name == "sqlite" else url.render_as_string()


def _back_up(source: Path, target: Path) -> None:
    create_private_file(target)
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def _migrate(engine: Engine) -> None:
    from alembic import command

    with engine.begin() as connection:  # one transaction: all of it or nothing
        lift_time_limits(connection)
        command.upgrade(alembic_config(connection), HEAD)


def alembic_config(connection: Connection) -> Config:
    """Return Alembic's configuration for an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config

"""Time limits of statements of a PostgreSQL ledger."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select

_LIMITS = {"lock_timeout": "60s", "statement_timeout": "120s"}


def set_time_limits(connection: Any, _: Any) -> None:
    """Set the limits of a new connection, unless the URL or the role sets others."""
    cursor = connection.cursor()
    for name, limit in _LIMITS.items():
        cursor.execute(
            f"SELECT set_config('{name}', '{limit}', false) WHERE current_setting('{name}') = '0'"
        )
    cursor.close()
    connection.commit()


def lift_time_limits(connection: Connection) -> None:
    """Lift the limits for the rest of a long transaction; SQLite has none."""
    if connection.dialect.name == "postgresql":
        for name in _LIMITS:
            connection.execute(select(func.set_config(name, "0", True)))

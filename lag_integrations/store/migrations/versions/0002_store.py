"""Embeddings in the ledger, codecs, usage counters, tags, removals.

Traces, outcomes and counts are carried over. Segments and embeddings are derived: they are made
again, and the old segment files are queued for removal.
"""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the new tables, and carry the traces over."""
    for index in ("ix_logs_namespace", "ix_logs_indexed"):
        op.drop_index(index, "logs")
    op.rename_table("logs", "old_logs")
    op.rename_table("segments", "old_segments")
    op.rename_table("settings", "old_settings")
    logs = op.create_table(
        "logs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("namespace", sa.String(64), nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("captured_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float, nullable=False),
        sa.Column("times_seen", sa.Integer, nullable=False),
        sa.Column("times_recalled", sa.Integer, nullable=False),
        sa.Column("times_helped", sa.Integer, nullable=False),
        sa.Column("times_harmed", sa.Integer, nullable=False),
        sa.Column("embedded", sa.Boolean, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
        sa.Column("trace", sa.Text, nullable=False),
    )
    op.create_index("ix_logs_embedded", "logs", ["namespace", "embedded", "captured_at"])
    op.create_index("ix_logs_captured", "logs", ["namespace", "captured_at"])
    op.create_index("ix_logs_bytes", "logs", ["namespace", "bytes"])
    to_log = sa.ForeignKey("logs.id", ondelete="CASCADE")
    tags = op.create_table(
        "tags",
        sa.Column("log_id", sa.String(32), to_log, primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("text", sa.Text),
        sa.Column("number", sa.Float),
    )
    op.create_index("ix_tags_text", "tags", ["key", "text", "log_id"])
    op.create_index("ix_tags_number", "tags", ["key", "number", "log_id"])
    op.create_table(
        "embeddings",
        sa.Column("log_id", sa.String(32), to_log.copy(), primary_key=True),
        sa.Column("namespace", sa.String(64), nullable=False),
        sa.Column("indexed_in", sa.String(64)),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_embeddings_indexed", "embeddings", ["namespace", "indexed_in"])
    op.create_table(
        "segments",
        sa.Column("log_id", sa.String(32), to_log.copy(), primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("selection", sa.String(64), primary_key=True),
        sa.Column("codec", sa.String(16), primary_key=True),
        sa.Column("file", sa.Text),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
    )
    op.create_table(
        "failures",
        sa.Column("log_id", sa.String(32), to_log.copy(), primary_key=True),
        sa.Column("task", sa.String(160), primary_key=True),
        sa.Column("error", sa.Text, nullable=False),
    )
    removals = op.create_table(
        "removals",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(64), nullable=False, index=True),
        sa.Column("log_id", sa.String(32)),
        sa.Column("file", sa.Text),
    )
    settings = op.create_table(
        "settings",
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    connection = op.get_bind()
    for rows in _batches(connection, "SELECT * FROM old_logs"):
        connection.execute(sa.insert(logs), [_carried_over(row) for row in rows])
        if found := [tag for row in rows for tag in _tags(row)]:
            connection.execute(sa.insert(tags), found)
    files = (
        "SELECT old_logs.namespace, old_segments.file FROM old_segments "
        "JOIN old_logs ON old_logs.id = old_segments.log_id"
    )
    for rows in _batches(connection, files):
        connection.execute(
            sa.insert(removals),
            [
                {"namespace": row["namespace"], "file": row["file"].removeprefix("segments/")}
                for row in rows
            ],
        )
    for rows in _batches(connection, "SELECT * FROM old_settings WHERE key = 'embedder'"):
        connection.execute(sa.insert(settings), rows)
    for table in ("old_segments", "old_logs", "old_settings"):
        op.drop_table(table)


def _batches(connection: sa.Connection, query: str) -> Iterator[list[dict[str, Any]]]:
    result = connection.execute(sa.text(query)).mappings()
    while rows := result.fetchmany(500):
        yield [dict(row) for row in rows]


def _tags(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key, value in json.loads(row["trace"]).get("metadata", {}).items():
        for position, item in enumerate(value if isinstance(value, list) else [value]):
            if len(key) <= 128 and isinstance(item, str | bool | int | float):
                tag = {"log_id": row["id"], "key": key, "position": position}
                text, number = (item, None) if isinstance(item, str) else (None, float(item))
                yield {**tag, "text": text, "number": number}


def _carried_over(row: dict[str, Any]) -> dict[str, Any]:
    captured = row["captured_at"]
    if isinstance(captured, str):  # SQLite keeps dates as text, without their zone
        captured = datetime.fromisoformat(captured)
    if captured.tzinfo is None:
        captured = captured.replace(tzinfo=timezone.utc)
    return {
        **{key: row[key] for key in ("id", "namespace", "content_hash", "outcome", "trace")},
        "captured_at": captured.timestamp(),
        "used_at": captured.timestamp(),
        "times_seen": row["times_seen"],
        "times_recalled": 0,
        "times_helped": 0,
        "times_harmed": 0,
        "embedded": False,
        "bytes": len(row["trace"].encode()),
    }

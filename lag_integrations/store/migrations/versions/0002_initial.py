"""The initial schema: one embedding a log.

New ledgers get the newest schema at once; this one is where older ones begin.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
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
    op.create_table(
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
    op.create_table(
        "removals",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("namespace", sa.String(64), nullable=False, index=True),
        sa.Column("log_id", sa.String(32)),
        sa.Column("file", sa.Text),
    )
    op.create_table(
        "settings",
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "models",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("parts", sa.Text, nullable=False),
    )

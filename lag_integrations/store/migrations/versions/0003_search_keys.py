"""Several embeddings a log, one for each of its search keys.

Embeddings are derived: all logs are embedded again, in the background. The embedder stays the
store's, under a new generation, so that the index begins anew.
"""

import json
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table anew, and mark all logs as not embedded."""
    op.drop_index("ix_embeddings_indexed", "embeddings")
    op.drop_table("embeddings")
    op.create_table(
        "embeddings",
        sa.Column(
            "log_id", sa.String(32), sa.ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("key", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("namespace", sa.String(64), nullable=False),
        sa.Column("indexed_in", sa.String(64)),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_embeddings_indexed", "embeddings", ["namespace", "indexed_in"])
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE logs SET embedded = :no"), {"no": False})
    embedder = connection.execute(
        sa.text("SELECT value FROM settings WHERE key = 'embedder'")
    ).scalar_one_or_none()
    if embedder is not None:
        record = {**json.loads(embedder), "generation": uuid4().hex}
        connection.execute(
            sa.text("UPDATE settings SET value = :value WHERE key = 'embedder'"),
            {"value": json.dumps(record)},
        )

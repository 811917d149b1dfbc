"""The words of each log, for full text search.

They are derived with a log's embeddings, so all logs are embedded again, in the background. Until
then they are found by the embeddings that they have.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

from lag_integrations.store.schema import LEXICAL_SQLITE

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table, with its full text index, and mark all logs as not embedded."""
    op.create_table(
        "lexical",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "log_id",
            sa.String(32),
            sa.ForeignKey("logs.id", ondelete="CASCADE"),
            nullable=False,
            unique=True,
        ),
        sa.Column("words", sa.Text().with_variant(TSVECTOR(), "postgresql"), nullable=False),
    )
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        for statement in LEXICAL_SQLITE:
            op.execute(statement)
    else:
        op.create_index("ix_lexical_words", "lexical", ["words"], postgresql_using="gin")
    connection.execute(sa.text("UPDATE logs SET embedded = :no"), {"no": False})

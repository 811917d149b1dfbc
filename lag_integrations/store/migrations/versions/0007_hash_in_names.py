"""Segment files have their SHA-256 in their names, which the ledger holds.

Names of before do not tell what has to be in the files. Segments are derived, so all are forgotten
here and their files queued for removal; they are encoded again from their traces.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Forget all segments, and have their files removed."""
    op.execute(
        sa.text(
            "INSERT INTO removals (namespace, file) SELECT logs.namespace, segments.file "
            "FROM segments JOIN logs ON logs.id = segments.log_id WHERE segments.file IS NOT NULL"
        )
    )
    op.execute(sa.text("DELETE FROM segments WHERE file IS NOT NULL"))

"""Booleans in the metadata are told from the numbers 0 and 1: their tags are texts."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_PAGE = 500


def upgrade() -> None:
    """Look for booleans in the traces that have a 0 or 1 among their tags."""
    connection = op.get_bind()
    find = sa.text(
        "SELECT id, trace FROM logs WHERE id > :last AND id IN (SELECT log_id FROM tags "
        f"WHERE number IN (0, 1)) ORDER BY id LIMIT {_PAGE}"
    )
    mark = sa.text(
        "UPDATE tags SET text = :text, number = NULL "
        "WHERE log_id = :id AND key = :key AND position = :position AND number IN (0, 1)"
    )
    last = ""
    while page := connection.execute(find, {"last": last}).all():
        last = page[-1].id
        found = [
            {"id": row.id, "key": key, "position": position, "text": f"\ufffe{item}".lower()}
            for row in page
            for key, value in _metadata(row.trace).items()
            for position, item in enumerate(value if isinstance(value, list) else [value])
            if isinstance(item, bool)
        ]
        if found:
            connection.execute(mark, found)


def _metadata(trace: str) -> dict[str, object]:
    try:
        metadata = json.loads(trace)["metadata"]
    except (ValueError, KeyError, TypeError, RecursionError):  # a damaged trace
        return {}
    return metadata if isinstance(metadata, dict) else {}

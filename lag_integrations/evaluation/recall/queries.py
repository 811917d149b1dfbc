"""Queries, each with the log that fits it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.datasets.files import read_places


class RecallQuery(BaseModel):
    """A query.

    Attributes:
        query: The new task.
        log: The id of the log that fits, or its first digits; None if nothing fits.
        before: What the user said before it.
        kind: The row of a table in which it counts.
    """

    # A key that is misspelled would have no effect.
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    query: Annotated[str, Field(min_length=1)]
    log: Annotated[str, Field(min_length=1)] | None
    before: str | None = None
    kind: str = ""


def read_queries(path: Path) -> list[tuple[str, RecallQuery]]:
    """Read queries from a JSONL file, each behind its place, for people.

    Raises:
        EvaluationError: It cannot be read, or holds something else, or nothing.
    """
    queries = read_places(path, RecallQuery)
    if not queries:
        raise EvaluationError(
            f'{path} has no queries; give lines like {{"query": …, "log": "<id>" or null}}.'
        )
    return queries


def is_held_out(query: RecallQuery, one_in: int) -> bool:
    """Return whether a query is held out: by its text, so that it always is, or never.

    Args:
        query: The query.
        one_in: Of how many queries about one is.
    """
    digest = hashlib.blake2b(query.query.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % one_in == 0

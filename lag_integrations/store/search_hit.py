"""Queries of a search, and its hits."""

from __future__ import annotations

from dataclasses import dataclass

from lag_integrations.store.embedder import Vectors


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        text: The text.
        vector: Its embedding, fp32 ``[dimension]``.
    """

    text: str
    vector: Vectors


@dataclass(frozen=True)
class SearchHit:
    """A log that a search found.

    Attributes:
        id: Its id.
        score: Cosine similarity of the query and the log's nearest search key.
        key: The number of that key.
        words: Rare words that query and log share, see `LexicalIndex.shared`.
        relevance: The probability that it fits.
    """

    id: str
    score: float
    key: int
    words: float
    relevance: float

    @property
    def rank(self) -> tuple[float, float, str]:
        """The sort key: the most relevant comes first."""
        return -self.relevance, -self.score, self.id

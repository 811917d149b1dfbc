"""Queries of a search, its hits, and the floor that a hit has to reach."""

from __future__ import annotations

from dataclasses import dataclass

from lag_integrations.store.embedder import Vectors
from lag_integrations.store.relevance.model import Relevance


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


@dataclass(frozen=True)
class Floor:
    """The least relevance, or the least score, of logs that are recalled.

    Attributes:
        relevance: Least probability that a log fits.
        score: Least cosine similarity, which replaces `relevance` if it is given.
    """

    relevance: float
    score: float | None = None

    def least_similarity(self, relevance: Relevance) -> float:
        """Return the similarity below which no log can reach the floor."""
        return relevance.least_similarity(self.relevance) if self.score is None else self.score

    def reached_by(self, hit: SearchHit) -> bool:
        """Return whether a log reaches the floor."""
        if self.score is None:
            return hit.relevance >= self.relevance
        return hit.score >= self.score

    def __str__(self) -> str:
        if self.score is None:
            return f"a relevance of {self.relevance:g}"
        return f"a similarity of {self.score:g}"

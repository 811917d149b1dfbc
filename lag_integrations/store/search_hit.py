"""What a search asks for, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass

from lag_integrations.store.embedder import Vectors
from lag_integrations.store.relevance.model import Relevance


@dataclass(frozen=True)
class Query:
    """A text that logs are searched by.

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
        score: Cosine similarity of the query and the nearest of its search keys.
        key: The number of that key.
        words: Rare words that both hold, see `LexicalIndex.shared`.
        relevance: The probability that it fits.
    """

    id: str
    score: float
    key: int
    words: float
    relevance: float

    @property
    def rank(self) -> tuple[float, float, str]:
        """What logs are sorted by: the most relevant comes first."""
        return -self.relevance, -self.score, self.id


@dataclass(frozen=True)
class Floor:
    """What a log has to reach to be recalled.

    Attributes:
        relevance: The least probability that it fits.
        score: The least cosine similarity instead, where one is given.
    """

    relevance: float
    score: float | None = None

    def least_similarity(self, relevance: Relevance) -> float:
        """Return the similarity below which no log can reach it."""
        return relevance.least_similarity(self.relevance) if self.score is None else self.score

    def reached_by(self, found: SearchHit) -> bool:
        """Return whether a log reaches it."""
        if self.score is None:
            return found.relevance >= self.relevance
        return found.score >= self.score

    def __str__(self) -> str:
        if self.score is None:
            return f"a relevance of {self.relevance:g}"
        return f"a similarity of {self.score:g}"

"""The floor: below it nothing is recalled, rather than something unrelated."""

from __future__ import annotations

from dataclasses import dataclass

from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import SearchHit

MIN_RELEVANCE = 0.5
"""Least probability that a recalled log fits, by default."""


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

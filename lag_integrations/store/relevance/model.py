"""The relevance model: the probability that a log fits, from similarity and shared words."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from lag_integrations.errors import StoreError


@dataclass(frozen=True)
class Relevance:
    """A logistic model: ``sigmoid(bias + similarity * s + words * r / (r + 1))``.

    ``s`` is the cosine similarity of the query and the log's nearest search key, and ``r`` is the
    rarity of the words that they share (`LexicalIndex.shared`).

    Attributes:
        bias: The constant.
        similarity: The weight of the similarity, 0 or more.
        words: The weight of the words, 0 or more.

    Raises:
        StoreError: A weight is not finite: everything, or nothing, would fit.
    """

    bias: float
    similarity: float
    words: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise StoreError(
                "What similarities of the embedder mean cannot be measured, since it gives vectors "
                "that are not finite for some of the built-in texts. Use another embedder, or mend "
                "this one; then call memory.reindex() (`kvlog reindex`)."
            )

    def of(self, similarity: float, shared: float) -> float:
        """Return the probability that the log fits.

        Args:
            similarity: Cosine similarity.
            shared: The rarity of shared words.
        """
        logit = self.bias + self.similarity * similarity + self.words * shared / (shared + 1.0)
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, logit))))

    def similarity_for(self, relevance: float) -> float:
        """Return the least similarity of a log without shared words that is that relevant."""
        return self._similarity(relevance, 0.0)

    def least_similarity(self, relevance: float) -> float:
        """Return the similarity below which no log can be that relevant, whatever its words."""
        return self._similarity(relevance, self.words)

    def _similarity(self, relevance: float, words: float) -> float:
        """Return the least similarity that makes a log so relevant, given what words add."""
        if relevance <= 0.0 or self.similarity == 0.0:
            return -1.0
        if relevance >= 1.0:
            return 1.0
        logit = math.log(relevance / (1.0 - relevance))
        return max(-1.0, min(1.0, (logit - self.bias - words) / self.similarity))

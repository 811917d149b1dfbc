"""The rule by which a setting is chosen from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_LEAST = -5.0
"""Log likelihood, in nats a token, below which an answer is just wrong, however unlikely it is."""
_T = 2.12
"""The 97.5 % point of Student's t for the set's 17 questions."""
_CLEARLY = -0.25
"""Mean value that KV must lose against text, with an interval below 0, to be clearly worse."""


@dataclass(frozen=True)
class Score:
    """How a model did on one question in one setting.

    Attributes:
        likelihood: Mean log likelihood of the right answer, nats a token.
        exact: Whether the right answer is the greedy one.
        parroted: Whether the log's old answer, which is wrong, is likelier than the right one.
    """

    likelihood: float
    exact: bool
    parroted: bool = False

    @property
    def value(self) -> float:
        """What settings are compared by: the likelihood, and a nat less for an old answer."""
        return max(self.likelihood, _LEAST) - self.parroted


def best(scores: Mapping[str, Sequence[Score]]) -> str:
    """Return the setting with the highest mean value; of equal ones, the first.

    Args:
        scores: By setting, the scores of the same questions in the same order.
    """
    return max(scores, key=lambda setting: fmean(score.value for score in scores[setting]))


def gain(scores: Sequence[Score], others: Sequence[Score]) -> tuple[float, tuple[float, float]]:
    """Return by how much scores are better than others, and the 95 % interval (paired t)."""
    differences = [one.value - other.value for one, other in zip(scores, others, strict=True)]
    mean = fmean(differences)
    spread = stdev(differences) / math.sqrt(len(differences))
    return mean, (mean - _T * spread, mean + _T * spread)


def is_clearly_worse(mean: float, interval: tuple[float, float]) -> bool:
    """Whether a gain says that KV is not to be used."""
    return mean <= _CLEARLY and interval[1] < 0

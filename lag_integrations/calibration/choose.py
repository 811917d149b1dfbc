"""The rule by which a setting is chosen from what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_LEAST = -5.0
"""Log likelihood, in nats a token, below which an answer is just wrong, however unlikely it is."""
_ALIKE = 0.05
"""Difference in mean value, in nats a token, that says nothing: on questions that were not used to
calibrate, settings this close came out in any order."""
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
    """Return the first setting whose mean value is about the highest.

    Settings that differ by less than the set can tell apart are taken in their order, in which the
    default is the first.

    Args:
        scores: By setting, the scores of the same questions in the same order.
    """
    values = {setting: fmean(score.value for score in found) for setting, found in scores.items()}
    highest = max(values.values())
    return next(setting for setting, value in values.items() if value >= highest - _ALIKE)


def gain(scores: Sequence[Score], others: Sequence[Score]) -> tuple[float, tuple[float, float]]:
    """Return by how much scores are better than others, and the 95 % interval (paired t)."""
    differences = [one.value - other.value for one, other in zip(scores, others, strict=True)]
    mean = fmean(differences)
    spread = stdev(differences) / math.sqrt(len(differences))
    return mean, (mean - _T * spread, mean + _T * spread)


def is_clearly_worse(mean: float, interval: tuple[float, float]) -> bool:
    """Return whether a gain says that KV is not to be used."""
    return mean <= _CLEARLY and interval[1] < 0

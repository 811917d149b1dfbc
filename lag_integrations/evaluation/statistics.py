"""How sure a mean is: bootstrap intervals of scores, and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lag_integrations.errors import EvaluationError

_CONFIDENCE = 0.95
_RESAMPLES = 5_000
_BATCH = 500
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], *, least: float = 0.0, most: float = 1.0) -> Interval:
    """Return the mean of scores, with its bootstrap interval (BCa), which is reproducible.

    Where all scores are equal, there is nothing to resample. Then the interval says what they leave
    open: so many others may exist that none of them is met with a probability of 2.5 %.

    Args:
        values: The scores, one a question.
        least: The lowest score there is.
        most: The highest score there is.

    Raises:
        EvaluationError: There are no scores.
    """
    if not len(values):
        raise EvaluationError("There are no scores to take a mean of.")
    scores = np.asarray(values, dtype=np.float64)
    mean = float(scores.mean())
    if scores.min() == scores.max():
        others = 1 - ((1 - _CONFIDENCE) / 2) ** (1 / len(scores))
        return Interval(mean, mean - others * (mean - least), mean + others * (most - mean))

    from scipy.stats import bootstrap  # takes a second to import

    ends = bootstrap(
        (scores,),
        np.mean,
        method="BCa",
        confidence_level=_CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        rng=_SEED,
    ).confidence_interval
    return Interval(mean, float(ends.low), float(ends.high))


def difference(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Return the mean of ``values - others``, with its interval.

    Args:
        values: Scores from 0 to 1, one a question.
        others: Scores of the same questions, in the same order.

    Raises:
        EvaluationError: There are no scores, or not as many of one as of the other.
    """
    if len(values) != len(others):
        raise EvaluationError(
            f"{len(values)} scores cannot be paired with {len(others)}; "
            "give the scores of the same questions."
        )
    return interval(np.subtract(values, others, dtype=np.float64).tolist(), least=-1.0)

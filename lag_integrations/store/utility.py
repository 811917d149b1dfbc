"""Utility: whether runs succeed that are given a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from lag_integrations.store.search_hit import SearchHit

_PRIOR, _STRENGTH = 0.7, 4.0
"""Before anything is known of a log: as if so many runs had been given it, of which this share
succeeded."""
_OPTIMISM = 0.5
"""Standard deviations by which what is little known comes before what is known to be as useful."""
_LEAST = 0.25
"""Least utility of a log that is recalled."""


class RunOutcomes(NamedTuple):
    """How the judged runs ended into which a log was recalled.

    Their failures are not all the log's fault: several logs are recalled into a run, and a model
    may fail with the best of them. So few runs say little; see docs/recall.md for the figures.

    Attributes:
        succeeded: Runs that succeeded.
        failed: Runs that failed.
    """

    succeeded: int = 0
    failed: int = 0

    @property
    def utility(self) -> float:
        """The share of runs that succeed with the log: the mean of its beta posterior."""
        return (self.succeeded + _STRENGTH * _PRIOR) / (sum(self) + _STRENGTH)

    @property
    def weight(self) -> float:
        """By what the log's relevance is multiplied where logs are put in order."""
        mean = self.utility
        deviation = sqrt(mean * (1 - mean) / (sum(self) + _STRENGTH + 1))
        return mean + _OPTIMISM * deviation

    @property
    def is_useless(self) -> bool:
        """Whether runs that are given the log fail so often that it is not recalled any more."""
        return self.utility < _LEAST


def most_useful(hits: Sequence[SearchHit], outcomes: Mapping[str, RunOutcomes]) -> list[SearchHit]:
    """Put hits in the order of relevance and utility together, without those that are useless.

    Args:
        hits: The hits.
        outcomes: What is known of the runs into which they were recalled, by log id.
    """
    if not outcomes:
        return list(hits)
    known = {one.id: outcomes.get(one.id, RunOutcomes()) for one in hits}
    useful = [one for one in hits if not known[one.id].is_useless]
    return sorted(useful, key=lambda one: (-one.relevance * known[one.id].weight, *one.rank))

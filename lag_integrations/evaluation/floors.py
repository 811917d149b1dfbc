"""What a floor under the similarity of logs would have done: its gain, and its harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from lag_integrations.evaluation.records import Record

FLOORS = (-1.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Floor:
    """An arm with a floor.

    Attributes:
        floor: Least similarity of a log that is given.
        exact_match: Share of the questions that are right.
        gained: Share that is right, and is not without logs.
        harmed: Share that is wrong, and is right without logs.
        abstained: Share that is given no log.
    """

    floor: float
    exact_match: float
    gained: float
    harmed: float
    abstained: float


def floors(
    asked: Mapping[str, Record], baseline: Mapping[str, Record], least: float
) -> list[Floor]:
    """Return an arm's figures with other floors, from one run with a low floor.

    Below the floor, a question is answered as it is without logs. That says what would have
    happened only if a question has one round and at most one log, which was recalled; else there is
    no figure.

    Args:
        asked: Records of the arm, by question.
        baseline: Records of the arm without logs, by question.
        least: The floor of that run; nothing is known of lower ones.
    """
    both = [(record, baseline[key]) for key, record in asked.items() if key in baseline]
    if not both or any(
        record.rounds > 1 or len(record.logs) > 1 or len(record.scores) != len(record.logs)
        for record, _ in both
    ):
        return []
    return [_floor(floor, both) for floor in FLOORS if floor >= least]


def _floor(floor: float, both: list[tuple[Record, Record]]) -> Floor:
    given = [bool(record.scores) and record.scores[0] >= floor for record, _ in both]
    right = [
        (record if has_log else without).exact_match
        for has_log, (record, without) in zip(given, both, strict=True)
    ]
    before = [without.exact_match for _, without in both]
    pairs = list(zip(right, before, strict=True))
    return Floor(
        floor=floor,
        exact_match=fmean(right),
        gained=fmean(now and not then for now, then in pairs),
        harmed=fmean(then and not now for now, then in pairs),
        abstained=1 - fmean(given),
    )

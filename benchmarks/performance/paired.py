"""Methods that are interleaved, and the ratios of their times round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

import numpy as np

Setting = dict[str, int | str]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles.

    Attributes:
        median: Half of the values are below.
        low: A quarter is below.
        high: A quarter is above.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        low, median, high = np.nanpercentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Figure:
    """How one way compares with another.

    Attributes:
        suite: What was measured.
        setting: Where on the axes: log tokens, k, codec…
        way: How it was done.
        value: Of the way itself, in the suite's unit.
        ratios: The value divided by that of other ways in the same round, by their names.
    """

    suite: str
    setting: Setting
    way: str
    value: Spread
    ratios: dict[str, Spread]

    @property
    def key(self) -> tuple[str, str, str]:
        """Names it among the figures of a run."""
        place = ", ".join(f"{name} {value}" for name, value in self.setting.items())
        return self.suite, place, self.way

    def to_json(self) -> dict[str, Any]:
        """Return the figure as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Figure:
        """Return the figure that `to_json` was called on."""
        ratios = {name: Spread(**spread) for name, spread in found["ratios"].items()}
        return cls(found["suite"], found["setting"], found["way"], Spread(**found["value"]), ratios)


def interleaved(
    rounds: int, ways: Mapping[str, Callable[[], float]], enough: Callable[[], bool] | None = None
) -> dict[str, list[float]]:
    """Measure ways in turns, each round beginning with another one; the first round warms up.

    Args:
        rounds: How often each is measured.
        ways: Functions that do something once and return its value.
        enough: Asked after each round that counts: whether fewer have to do.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = ways[name]()
            if number:
                taken[name].append(value)
        if number and enough is not None and enough():
            break
    return taken


def figures(
    suite: str, setting: Setting, taken: Mapping[str, Sequence[float]], against: Sequence[str]
) -> Iterator[Figure]:
    """Yield the figures of what was measured, with ratios to some of the ways.

    Args:
        suite: Name of the suite.
        setting: Where on the axes.
        taken: The values of each way, a round each; NaN where it was not done.
        against: The ways that others are divided by.
    """
    done = {way: values for way, values in taken.items() if not all(map(isnan, values))}
    for way, values in done.items():
        ratios = {
            base: Spread.of([one / other for one, other in zip(values, done[base], strict=True)])
            for base in against
            if base != way and base in done
        }
        yield Figure(suite, setting, way, Spread.of(values), ratios)

"""Which logs to trust by how runs ended, simulated: ``python -m benchmarks.utility``.

No model and no data. Of 60 tasks, each has six logs that are about as relevant, a fifth of them
wrong; each task comes 20 times. Three logs are given to a run, which succeeds more often where they
are right. Its outcome is judged, one in twenty times wrongly, and told of all logs it was given. So
right logs are blamed for what a weak model does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from lag_integrations.evaluation.machine import stamp
from lag_integrations.evaluation.report import as_markdown
from lag_integrations.evaluation.tables import Grid, Row, percent
from lag_integrations.store.search_hit import SearchHit
from lag_integrations.store.utility import RunOutcomes, most_useful

Rule = Callable[[Sequence[SearchHit], Mapping[str, RunOutcomes]], Sequence[SearchHit]]

_TASKS, _LOGS, _GIVEN, _ROUNDS, _SEEDS = 60, 6, 3, 20, 6
_FIRST_SEED = 1_000
"""The seeds before it were looked at when the figures of `store.utility` were chosen."""
_WRONG, _MISJUDGED, _PARAPHRASE = 0.2, 0.05, 0.05


@dataclass(frozen=True)
class World:
    """How often runs succeed.

    Attributes:
        name: For people.
        without: The share that succeeds without a right log.
        with_logs: The share that succeeds with nothing but right ones.
        best_counts: Whether the best log decides, and the others hardly matter.
    """

    name: str
    without: float
    with_logs: float
    best_counts: bool

    def chance(self, right: Sequence[bool]) -> float:
        """Return how likely a run succeeds that is given logs, best first."""
        if not right:
            return self.without
        share = sum(right) / len(right)
        if self.best_counts:
            share = 1.0 if right[0] else 0.3 * share
        return self.without + (self.with_logs - self.without) * share


_WORLDS = tuple(
    World(f"{name}, {'the best log decides' if best else 'all logs count'}", *shares, best)
    for best in (True, False)
    for name, shares in (
        ("weak model (5 to 40 %)", (0.05, 0.4)),
        ("15 to 80 %", (0.15, 0.8)),
        ("strong model (50 to 95 %)", (0.5, 0.95)),
    )
)


def _harmed_no_more_than_helped(
    hits: Sequence[SearchHit], outcomes: Mapping[str, RunOutcomes]
) -> list[SearchHit]:
    known = {one.id: outcomes.get(one.id, RunOutcomes()) for one in hits}
    return [one for one in hits if known[one.id].failed <= known[one.id].succeeded]


_RULES: dict[str, Rule] = {
    "outcomes ignored": lambda hits, _: hits,
    "left out if more runs failed than succeeded": _harmed_no_more_than_helped,
    "utility (as shipped)": most_useful,
}


def simulate(world: World, rule: Rule, seed: int) -> tuple[float, float]:
    """Return the share of runs that succeed in the last third, and of wrong logs in them.

    Args:
        world: How often runs succeed.
        rule: Which logs come first, by what is known of them.
        seed: Of all that is random.
    """
    chance = np.random.default_rng(seed)
    right = chance.random((_TASKS, _LOGS)) > _WRONG
    relevance = chance.uniform(0.5, 1, (_TASKS, _LOGS))
    outcomes: dict[str, RunOutcomes] = {}
    succeeded = given = wrong = runs = 0
    for round_ in range(_ROUNDS):
        for task in chance.permutation(_TASKS):
            near = np.clip(relevance[task] + chance.normal(0, _PARAPHRASE, _LOGS), 0.01, 1)
            hits = [
                SearchHit(f"{task}-{log}", float(near[log]), 0, 0.0, float(near[log]))
                for log in np.argsort(-near)
            ]
            chosen = list(rule(hits, outcomes))[:_GIVEN]
            are_right = [bool(right[task][int(one.id.split("-")[1])]) for one in chosen]
            success = chance.random() < world.chance(are_right)
            judged = success != (chance.random() < _MISJUDGED)
            for one in chosen:
                known = outcomes.get(one.id, RunOutcomes())
                outcomes[one.id] = RunOutcomes(
                    known.succeeded + judged, known.failed + (not judged)
                )
            if round_ >= _ROUNDS * 2 // 3:
                runs += 1
                succeeded += success
                given += len(chosen)
                wrong += are_right.count(False)
    return succeeded / runs, wrong / max(1, given)


def main() -> None:
    """Simulate, print a table and write it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/utility"), help="a folder")
    arguments = parser.parse_args()
    rows = []
    for world in track(_WORLDS):
        for name, rule in _RULES.items():
            found = np.array(
                [simulate(world, rule, seed) for seed in range(_FIRST_SEED, _FIRST_SEED + _SEEDS)]
            )
            low, high = found[:, 0].min(), found[:, 0].max()
            success, wrong = found.mean(axis=0)
            told = f"{percent(success)} [{percent(low)}, {percent(high)}]"
            rows.append(Row((world.name, name, told, percent(wrong)), False))
    header = ("runs succeed", "rule", "succeed in the last third %", "wrong, of given logs %")
    text = as_markdown(Grid("Utility, simulated", header, tuple(rows)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "report.md").write_text(f"{text}\n{stamp()}\n", "utf-8")
    print(text)


if __name__ == "__main__":
    main()

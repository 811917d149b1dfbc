"""Which turns are right: as BFCL judges, by what the calls did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lag_integrations.evaluation.tool_tasks.simulator import Simulator
from lag_integrations.evaluation.tool_tasks.tasks import Task

Failure = Literal["no call", "state", "results", "rounds", "error"]
"""Why a turn is wrong: nothing was called; the systems are in another state than after the right
calls; a result of these is missing; the rounds were over; or the run could not go on."""


@dataclass(frozen=True)
class Checkers:
    """What compares a run with the right calls.

    Attributes:
        states_fit: Whether systems are in the state of others; called with both, by name.
        results_fit: Whether all results of the right calls of a turn are among those of a run.
    """

    states_fit: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
    results_fit: Callable[[list[str], list[str]], bool]


class Judge:
    """Judges the turns of one run, one after the other.

    The right calls are carried out beside it, in systems of their own.

    Args:
        task: The task.
        checkers: What compares.
    """

    def __init__(self, task: Task, checkers: Checkers) -> None:
        self._task = task
        self._gold = Simulator(task)
        self._checkers = checkers
        self._turn = 0

    def judge(self, run: Simulator, *, calls: int) -> Failure | None:
        """Return why the next turn is wrong; None if it is right.

        As on BFCL, further calls do no harm that change nothing, a result may come from an earlier
        turn, and a turn that needs no call is right whatever is called.

        Args:
            run: What the run did, up to the turn's end.
            calls: How many calls it made in the turn.
        """
        gold = self._task.gold[self._turn]
        self._turn += 1
        results = [self._gold.call(call.name, call.args).text for call in gold]
        if not gold:
            return None
        if not calls:
            return "no call"
        if not self._checkers.states_fit(run.systems, self._gold.systems):
            return "state"
        return None if self._checkers.results_fit(run.results, results) else "results"

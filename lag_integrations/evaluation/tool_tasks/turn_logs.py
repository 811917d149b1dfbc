"""Which logs the model calls of one turn are given."""

from __future__ import annotations

from collections.abc import Sequence

from lag_integrations import KVLogMemory
from lag_integrations.evaluation.arms import Arm
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.reserved_metadata import LESSON


class TurnLogs:
    """Recalls for one turn as `KVLogMiddleware` does: whole runs once, steps before every call.

    Args:
        memory: The logs; None if the arm uses none.
        arm: Whether runs, steps or lessons are recalled.
        k: Most logs of a call.
        asked: What the user says in the turn.
        before: What the user said before.
    """

    def __init__(
        self, memory: KVLogMemory | None, arm: Arm, k: int, asked: str, before: str | None
    ) -> None:
        self._memory = memory
        self._arm = arm
        self._k = k
        self._asked = asked
        self._before = before
        self._found: list[RecalledLog] | None = None

    def next(self, step: Sequence[str]) -> list[RecalledLog]:
        """Return the logs for the turn's next call, best or latest first.

        Args:
            step: The texts of the model's last answer and of the results of its calls; none before
                the turn's first call.
        """
        if self._found is None:
            self._found = self._recall(self._asked, self._before)
        elif self._arm.uses_steps:
            query, before = ("\n".join(step), self._asked) if step else (self._asked, self._before)
            self._found = [*self._recall(query, before), *self._found]
        return self._found[: self._k]

    def _recall(self, query: str, before: str | None) -> list[RecalledLog]:
        """Recall what was not recalled before in this turn."""
        if self._memory is None or not self._k:
            return []
        return self._memory.recall(
            query,
            before=before,
            k=self._k,
            where=LESSON if self._arm.uses_lessons else None,
            newest_only=True,
            steps=self._arm.uses_steps,
            known={log.reference for log in self._found or ()},
            count=False,
        )

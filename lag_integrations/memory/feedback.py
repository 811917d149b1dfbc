"""Feedback: what judges and people say of runs, logs and documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args, overload
from uuid import UUID

from lag_integrations.errors import LogNotFoundError, StoreError
from lag_integrations.memory.base import MemoryBase
from lag_integrations.store.chunks import chunks
from lag_integrations.traces.sources import SOURCES
from lag_integrations.traces.trace import Outcome

_NAMES = 100
"""Sources that one question to the ledger names."""


class FeedbackMixin(MemoryBase):
    """Records what is said of logs."""

    @overload
    def feedback(self, log_ids: str | Iterable[str], /, *, helped: bool) -> None: ...

    @overload
    def feedback(self, run_id: str | UUID, /, *, outcome: Outcome) -> None: ...

    def feedback(
        self,
        ids: str | UUID | Iterable[str],
        /,
        *,
        helped: bool | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Say whether recalled logs helped (``helped=``), or how a run ended (``outcome=``).

        A log that harmed more often than it helped is not recalled any more; what helps is kept
        longer when a budget demands evictions. A run's outcome becomes its log's, whatever a judge
        says. It also tells of the logs that were recalled into it: those whose runs succeed come
        first, those whose runs fail again and again are not recalled. Said
        again or otherwise of the same run, the last word counts.

        Args:
            ids: With `helped`, ids of logs (``response_metadata["lag"]["log_ids"]``,
                `RecalledLog.id`). With `outcome`, the id of a root run, of a trace, or of its log.
            helped: Whether the logs helped; else they harmed.
            outcome: ``success``, ``failure``, ``incomplete`` or ``unknown``.

        Raises:
            LogNotFoundError: There are no such logs (the others are counted), or no such run.
            StoreError: Neither or both of `helped` and `outcome` are given, or they do not fit.
        """
        self._check_open()
        if (helped is None) == (outcome is None):
            raise StoreError("Say either helped=True/False of logs, or outcome=… of one run.")
        if outcome is not None:
            self._set_outcome(ids, outcome)
        elif isinstance(ids, UUID):
            raise StoreError("helped= is said of log ids; of a run, say outcome=….")
        else:
            self._count_feedback({ids} if isinstance(ids, str) else set(ids), helped=bool(helped))

    def _set_outcome(self, run_id: str | UUID | Iterable[str], outcome: Outcome) -> None:
        if not isinstance(run_id, str | UUID):
            raise StoreError("outcome= is said of one run; give its id as a string or UUID.")
        if outcome not in get_args(Outcome):
            known = ", ".join(get_args(Outcome))
            raise StoreError(f"{str(outcome)[:80]!r} is no outcome; known are {known}.")
        verdicts, text = self.store.outcomes, _hex(run_id)
        log_id = verdicts.log_of_run(text) or text
        if not verdicts.set_by_user(log_id, outcome):
            # An interrupted run is logged with the one that resumed it.
            earlier = self.store.ledger.having({"earlier_runs": text}, limit=1)
            resumed = next(iter(earlier), None)
            if resumed is None or not verdicts.set_by_user(resumed, outcome):
                raise LogNotFoundError(
                    f"There is no log of a run {str(run_id)[:80]} in {self.namespace} (any more). "
                    "Give the id of a root run that has ended, or a log id."
                )
        self._worker.notify()

    def judge(self, log_id: str, outcome: Outcome) -> None:
        """Record what a judge says of a log; it gives way to what `feedback` said.

        Args:
            log_id: Its id, or that of its trace.
            outcome: ``success``, ``failure``, ``incomplete`` or ``unknown``.

        Raises:
            LogNotFoundError: There is no such log.
        """
        self._check_open()
        verdicts = self.store.outcomes
        if not verdicts.set(verdicts.log_of_run(log_id) or log_id, outcome):
            raise LogNotFoundError(f"There is no log {log_id} in {self.namespace} (any more).")
        self._worker.notify()

    def _count_feedback(self, ids: set[str], *, helped: bool) -> None:
        unknown = ids - self.store.ledger.count_feedback(ids, helped=helped)
        if unknown:
            raise LogNotFoundError(
                f"There is no log {', '.join(sorted(unknown))} in {self.namespace} (any more)."
            )

    def sources_changed(self, ids: str | Iterable[str]) -> int:
        """Say that documents were changed or are gone: logs that used them are recalled no more.

        Until a log is confirmed: by ``feedback(run_id, outcome="success")``, or by a run that says
        the same again. Logs of later runs are not concerned.

        Args:
            ids: Ids or names of documents, or ids of pieces of them, as in a log's
                ``metadata["sources"]``.

        Returns:
            How many logs there are of them.
        """
        self._check_open()
        names = [ids] if isinstance(ids, str) else list(dict.fromkeys(ids))
        return self.store.ledger.mark_outdated(
            {SOURCES: {"$in": some}} for some in chunks(names, size=_NAMES)
        )


def _hex(run_id: str | UUID) -> str:
    """Return a run's id as traces have it; what is no UUID stays as it is."""
    try:
        return UUID(str(run_id)).hex
    except ValueError:
        return str(run_id)

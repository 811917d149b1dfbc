"""The memory without a framework; users open `lag_integrations.KVLogMemory`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lag_integrations.kv.segment import Segment
from lag_integrations.memory.feedback import FeedbackMixin
from lag_integrations.memory.learning import LearningMixin
from lag_integrations.memory.loading import LoadedLog, MissingSegments
from lag_integrations.memory.recall import RecallMixin
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.trace import Trace

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine


class LogMemory(RecallMixin, FeedbackMixin, LearningMixin):
    """A memory of computation: a folder of logs, and the KV segments of the models that use them.

    Adding a trace records it in the ledger at once; a worker thread embeds it, and encodes it with
    the model that is attached. Logs that a model has not encoded yet (captured before it was
    attached, or under another model) are encoded from their traces when recalled. Any number of
    threads and processes may use a folder at once.
    """

    def add(self, trace: Trace) -> str:
        """Record a trace; it is on disk when this returns, and recalled once the worker is done.

        Args:
            trace: A run in which the assistant said something. One that failed before is kept,
                too, but never recalled.

        Returns:
            The log's id. A trace with the same content gets the id that it got before.

        Raises:
            TraceError: The trace has no assistant response, so there is nothing to reuse, and is
                no failure; it has metadata that only this package sets; or ``screen=`` or
                ``redact=`` does not let it be stored (`TraceRefusedError`).
            StoreError: It could not be recorded (a full disk).
        """
        return self.add_many([trace])[0]

    def add_many(self, traces: Iterable[Trace]) -> list[str]:
        """Record traces, several a transaction: much faster than one by one.

        Returns:
            Their log ids.

        Raises:
            TraceError: One of the traces cannot be added, see `add`; none of them is recorded.
            StoreError: They could not be recorded.
        """
        return self._record(traces)

    def add_own(self, traces: Iterable[Trace], *, judged: bool = True) -> list[str]:
        """Record traces that this package made, for captures and stores.

        Args:
            traces: The traces; they may have metadata that nobody else may set.
            judged: Whether somebody says their outcomes, rather than a capture by their ends.

        Returns:
            Their log ids.

        Raises:
            TraceError: As for `add`.
            StoreError: They could not be recorded.
        """
        return self._record(traces, ours=True, judged=judged)

    def _record(
        self, traces: Iterable[Trace], *, ours: bool = False, judged: bool = True
    ) -> list[str]:
        self._check_open()
        traces = list(traces)
        for trace in traces:
            trace.require_response()
        ids = self.store.ledger.add(traces, ours=ours, judged=judged)
        self._worker.notify(added=len(traces))
        return ids

    def load(
        self,
        logs: Sequence[RecalledLog],
        engine: Engine | None = None,
        *,
        budget: int | None = None,
        missing: MissingSegments = "encode",
        as_text: bool = False,
    ) -> list[LoadedLog]:
        """Load logs for a model, the first first, as far as they fit.

        A log that cannot be used (deleted since, refused by the model, out of memory) is left out
        with a warning.

        Args:
            logs: What `recall` found, the most relevant first.
            engine: The model that is to use them; the attached one by default.
            budget: Most tokens of all together; a log that does not fit is left out. No limit by
                default.
            missing: What to do with a log that has no valid segment for this model (not encoded
                yet, evicted, damaged, of another model): encode its trace now, or read its last
                response as text; then the worker encodes it meanwhile.
            as_text: Read all last responses as text.

        Raises:
            StoreError: No model is given or attached, or the store fails.
        """
        engine = self._engine_for(engine)
        self._check_deletions()
        loaded = self._segments.load(logs, engine, budget=budget, missing=missing, as_text=as_text)
        if missing == "text" and not as_text and any(one.segment is None for one in loaded):
            self._worker.notify()
        return loaded

    def segments(self, logs: Sequence[RecalledLog], engine: Engine | None = None) -> list[Segment]:
        """Load the segments of all logs, in their order; what is missing is encoded.

        Args:
            logs: What `recall` found.
            engine: The model that is to use them; the attached one by default.

        Raises:
            LogNotFoundError: A log was deleted since, or is another namespace's.
            StoreError: No model is given or attached.
            LAGError: A trace cannot be encoded by this model; says why.
        """
        engine = self._engine_for(engine)
        self._check_deletions()
        return self._segments.load_all(logs, engine)

"""KVLogMemory: what agents did is captured, encoded in the background, and recalled."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload
from uuid import UUID, uuid4

from lag_integrations.calibration.record import Calibration
from lag_integrations.deriving import Deriver
from lag_integrations.errors import (
    CalibrationError,
    EncodingError,
    LogNotFoundError,
    StoreError,
)
from lag_integrations.frameworks import FrameworkForms
from lag_integrations.kv.codecs import codec as codec_of
from lag_integrations.kv.segment import Segment
from lag_integrations.kv.selection import Selection
from lag_integrations.opened import forget, remember
from lag_integrations.store.archive import Archived, export_archive, import_archive
from lag_integrations.store.audit import Audit, Problem
from lag_integrations.store.budget import Budget
from lag_integrations.store.diversity import most_diverse
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.filters import Where
from lag_integrations.store.locks import wait_a_little
from lag_integrations.store.store import Found, LogStore
from lag_integrations.trace import Outcome, Trace
from lag_integrations.traces.search_keys import SearchKey, search_keys
from lag_integrations.worker import Worker

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from lag_integrations.engine import Engine

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

MIN_SCORE = 0.5
"""Least cosine similarity of a recalled log, by default; it fits all-MiniLM-L6-v2."""
_COUNT_EVERY = 5.0
"""Seconds between two records of how often logs were recalled."""
_TELL_EVERY = 0.2
"""Seconds between two reports of progress."""
_NAMED = 5
"""Failures that an error names; memory.store.failures has all."""
_FETCH = 5
"""Candidates a log, from which diverse ones are chosen."""


@dataclass(frozen=True)
class RecalledLog:
    """A log that fits a query.

    Attributes:
        id: Its log id.
        log: Its trace.
        score: Cosine similarity of the query and the nearest of the log's search keys; None if it
            was asked for by its id.
        key: That search key.
    """

    id: str
    log: Trace
    score: float | None
    key: SearchKey | None = None


class KVLogMemory(FrameworkForms):
    """A memory of computation: a folder of logs, and the KV segments of the models that use them.

    Adding a trace records it in the ledger at once; a worker thread embeds it, and encodes it with
    the model that is attached. Logs that a model has not encoded yet (captured before it was
    attached, or under another model) are encoded from their traces when recalled. Any number of
    threads and processes may use a folder at once.

    Args:
        path: Folder of the store; made if it does not exist.
        namespace: Tenant whose logs are seen; letters, digits, ``.``, ``_``, ``-``.
        embedder: See `Embedder`; the packaged all-MiniLM-L6-v2 by default, else the hub's.
        k: Most logs to recall.
        min_score: Least cosine similarity of a recalled log, from -1 to 1. Below it, nothing is
            recalled rather than something unrelated. Right values differ between embedders.
        outcomes: Logs with these outcomes are recalled; failures are kept, but not recalled.
        diversity: From 0 (the nearest logs) to 1 (logs that differ): maximal marginal relevance
            with ``lambda = 1 - diversity``. Keeps near-duplicates from taking every place.
        selection: Which tokens of a trace become its segment; by default what the model's
            calibration says, else `TaskAndLastTurns`.
        codec: How segments are stored: ``native`` (the model's dtype), ``fp32``, ``bf16``,
            ``fp16``, ``fp8``, ``int8``, ``int4``, each also lossless compressed (``int8+zstd``).
        max_bytes: Budget of the namespace for traces and segments. The segments of the least
            recent and least useful logs go first; they are made again when they are recalled.
        max_logs: Most logs in the namespace; the least recent and least useful are deleted.
        ttl: Age (a ``timedelta``, or seconds) at which logs are deleted, from their last capture.
        hot_bytes: Most bytes of segments to keep in memory.
        max_pending: Logs that may wait for the worker before `add` waits too (a second at most).
        ledger: SQLAlchemy URL of a PostgreSQL database; an SQLite file in the folder by default.
        segments: Folder or fsspec URL for the segments; in the folder by default.
        index: URL of a Chroma server, or a Chroma client; embedded in the folder by default.

    Attributes:
        id: Names this object among those of the process.
        store: The log store of the namespace, for maintenance.

    Raises:
        StoreError: A name or number is not valid, or the store cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        namespace: str = "default",
        embedder: Any = None,
        k: int = 3,
        min_score: float = MIN_SCORE,
        outcomes: Sequence[Outcome] = ("success", "unknown"),
        diversity: float = 0.0,
        selection: Selection | None = None,
        codec: str = "native",
        max_bytes: int | None = None,
        max_logs: int | None = None,
        ttl: timedelta | float | None = None,
        hot_bytes: int = 512 * 2**20,
        max_pending: int = 1_000,
        ledger: str | None = None,
        segments: str | None = None,
        index: str | ClientAPI | None = None,
    ) -> None:
        self.id = uuid4().hex
        self.k = k
        self.min_score = min_score
        self.outcomes = tuple(outcomes)
        self.diversity = diversity
        codec_of(codec)  # an unknown one is refused now, not by the worker
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        budget = Budget(max_bytes, max_logs, seconds)
        self._embedding = Embedder(embedder)
        self.store = LogStore(
            path,
            namespace,
            ledger=ledger,
            segments=segments,
            index=index,
            ttl=seconds,
            hot_bytes=hot_bytes,
        )
        self._process = os.getpid()
        self.path = self.store.path
        self.namespace = namespace
        self._deriver = Deriver(
            self.store,
            self._embedding,
            selection=selection,
            codec=codec,
            budget=budget,
            record_uses=self._record_uses,
        )
        self._engine: Engine | None = None
        self._shared: dict[str, Calibration | None] = {}  # by model, as last seen
        self._reported: dict[tuple[str, str], str] = {}
        self._uses: Counter[str] = Counter()
        self._uses_lock = threading.Lock()
        self._counted_at = time.monotonic()
        self._closing = threading.Lock()
        self._closed = False
        self._worker = Worker(self._step, self._settle, self._pending, max_pending)
        # A worker inside torch while the interpreter goes down would crash it.
        atexit.register(self.close)
        remember(self)
        unfinished = self.store.embeddings.count_missing(limit=1) or self.store.removals.next(1)
        if unfinished or budget != Budget():
            self._worker.notify()

    def __enter__(self) -> KVLogMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, engine: Engine) -> None:
        """Let a model encode this memory's logs from now on; `LAGChatModel` does this itself."""
        self._share_calibration(engine)
        if self._engine is not None and self._engine.fingerprint.id == engine.fingerprint.id:
            self._engine = engine
            return
        known = self.store.facts.models()
        if known and engine.fingerprint.id not in known:
            for parts in known.values():
                logger.info(
                    "This store was used by another model, which differs in %s; its logs will be "
                    "encoded again from their traces.",
                    ", ".join(engine.fingerprint.differences(parts)),
                )
        self.store.facts.add_model(engine.fingerprint.id, engine.fingerprint.to_json())
        self._engine = engine
        self._worker.notify()

    def _share_calibration(self, engine: Engine) -> None:
        """Keep a model's calibration in the store, and give it the store's if it has none."""
        model = engine.fingerprint.id
        if model in self._shared and self._shared[model] is engine.calibration:
            return
        stored = self.store.facts.calibration(model)
        found = None
        if stored is not None:
            try:
                found = Calibration.from_json(stored)
                if engine.calibration is None:
                    engine.use_calibration(found)
            except CalibrationError as error:
                logger.warning("A calibration in %s is not used: %s", self.path, error)
        if engine.calibration is not None and engine.calibration != found:
            self.store.facts.set_calibration(model, engine.calibration.model_dump_json())
        self._shared[model] = calibration = engine.calibration
        if calibration is not None and calibration.form == "text":
            logger.warning(
                "%s is given logs as text: its calibration found answers with KV clearly worse, "
                "or not sound. `kvlog calibrate` shows the figures.",
                engine.name,
            )

    def add(self, trace: Trace) -> str:
        """Record a trace; it is on disk when this returns, and recalled once the worker is done.

        Args:
            trace: A run in which the assistant said something.

        Returns:
            The log's id. A trace with the same content gets the id that it got before.

        Raises:
            TraceError: The trace has no assistant response, so there is nothing to reuse.
            StoreError: It could not be recorded (a full disk).
        """
        return self.add_many([trace])[0]

    def add_many(self, traces: Iterable[Trace]) -> list[str]:
        """Record traces, several a transaction: much faster than one by one.

        Returns:
            Their log ids.

        Raises:
            TraceError: A trace has no assistant response; none of them is recorded.
            StoreError: They could not be recorded.
        """
        self._check_open()
        traces = list(traces)
        for trace in traces:
            trace.require_response()
        ids = self.store.ledger.add(traces)
        self._worker.notify(added=len(traces))
        return ids

    def recall(
        self,
        query: str,
        *,
        k: int | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        diversity: float | None = None,
        count: bool = True,
    ) -> list[RecalledLog]:
        """The logs that fit a query, best first.

        Args:
            query: The new task.
            k: Most logs to return; the memory's own by default, as for all that follow.
            min_score: Least similarity.
            where: Only logs with such metadata, in Chroma's filter language (see
                `store.filters.condition`): ``{"project": "x", "year": {"$gte": 2025}}``.
            outcomes: Only logs with these outcomes.
            diversity: How much the logs shall differ from each other.
            count: Whether this counts as a use of the logs, which keeps them longer.

        Raises:
            StoreError: The filter is malformed, or the store fails.
        """
        self._check_open()
        k = self.k if k is None else k
        floor = self.min_score if min_score is None else min_score
        diversity = self.diversity if diversity is None else diversity
        if k < 1 or not query.strip():
            return []
        near = self.store.search(
            self._deriver.embed_query(query),
            k=k * _FETCH if diversity else k,
            floor=floor,
            outcomes=self.outcomes if outcomes is None else outcomes,
            where=where,
        )
        if diversity:
            entries, vectors = self.store.embeddings.vectors(ids=[found.id for found in near])
            # Of each log the first key, which is its task.
            first = dict(zip(entries, vectors, strict=True))
            tasks = {log_id: first[log_id, key] for log_id, key in sorted(first, reverse=True)}
            near = most_diverse(near, tasks, k=k, diversity=diversity)
        # By id from the ledger, which checks the namespace again and knows what was deleted.
        traces = self.store.ledger.get([found.id for found in near])
        found = [_recalled(one, traces[one.id]) for one in near if one.id in traces]
        if count:
            self._count_uses([log.id for log in found])
        return found

    def get(self, log_ids: str | Iterable[str]) -> list[RecalledLog]:
        """Logs by their ids, in the order asked for; those that do not exist are left out.

        Raises:
            StoreError: The store fails.
        """
        self._check_open()
        ids = [log_ids] if isinstance(log_ids, str) else list(dict.fromkeys(log_ids))
        traces = self.store.ledger.get(ids)
        return [RecalledLog(key, traces[key], None) for key in ids if key in traces]

    def segments(self, logs: Sequence[RecalledLog], engine: Engine | None = None) -> list[Segment]:
        """The segments of recalled logs, in the same order.

        What has no valid segment (not encoded yet, evicted, damaged, of another model) is encoded
        from its trace.

        Args:
            logs: What `recall` gave.
            engine: The model that is to use them; the attached one by default.

        Raises:
            LogNotFoundError: A log was deleted since, or is another namespace's.
            StoreError: No model is given or attached.
            LAGError: A trace cannot be encoded by this model; says why.
        """
        engine = self._engine_for(engine)
        stored = zip(logs, self._stored_segments(logs, engine), strict=True)
        return [
            self._deriver.segment(log.id, log.log, engine) if segment is None else segment
            for log, segment in stored
        ]

    def stored_segments(
        self, logs: Sequence[RecalledLog], engine: Engine | None = None
    ) -> list[Segment | None]:
        """As `segments`, but None for what would have to be encoded first.

        For callers who then rather use the log's text than wait: the worker encodes it.
        """
        engine = self._engine_for(engine)
        found = self._stored_segments(logs, engine)
        for log, segment in zip(logs, found, strict=True):
            if segment is None:  # an evicted one is wanted again
                self.store.segments.forget(self._deriver.key(log.id, engine), None)
        if None in found:
            self._deriver.look_again()
            self._worker.notify()
        return found

    def _stored_segments(self, logs: Sequence[RecalledLog], engine: Engine) -> list[Segment | None]:
        files = self.store.segments.files(self._deriver.key("", engine), [log.id for log in logs])
        found: list[Segment | None] = []
        for log in logs:
            if log.id not in files:
                raise LogNotFoundError(f"There is no log {log.id} in {self.namespace} (any more).")
            file = files[log.id]
            key = self._deriver.key(log.id, engine)
            found.append(None if file is None else self.store.load(key, file, engine.staged))
        return found

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
        says, and counts for the logs that were recalled into it: a success has helped, a failure
        harmed. Said again or otherwise of the same run, the last word counts.

        Args:
            ids: With `helped`, ids of logs (``response_metadata["lag"]["log_ids"]``,
                `RecalledLog.id`). With `outcome`, the id of a root run, of a trace, or of its log.
            helped: Whether the logs helped; else they harmed.
            outcome: ``success``, ``failure`` or ``unknown``.

        Raises:
            LogNotFoundError: There are no such logs (the others are counted), or no such run.
            StoreError: Neither or both of `helped` and `outcome` are given, or they do not fit.
        """
        self._check_open()
        if (helped is None) == (outcome is None):
            raise StoreError("Say either helped=True/False of logs, or outcome=… of one run.")
        if outcome is not None:
            self._give_verdict(ids, outcome)
        elif isinstance(ids, UUID):
            raise StoreError("helped= is said of log ids; of a run, say outcome=….")
        else:
            self._count_feedback({ids} if isinstance(ids, str) else set(ids), helped=bool(helped))

    def _give_verdict(self, run_id: str | UUID | Iterable[str], outcome: Outcome) -> None:
        if not isinstance(run_id, str | UUID):
            raise StoreError("outcome= is said of one run; give its id as a string or UUID.")
        if outcome not in get_args(Outcome):
            known = ", ".join(get_args(Outcome))
            raise StoreError(f"{str(outcome)[:80]!r} is no outcome; known are {known}.")
        verdicts, text = self.store.verdicts, _hex(run_id)
        log_id = verdicts.log_of_run(text) or text
        if not verdicts.give(log_id, outcome):
            # An interrupted run is logged with the one that resumed it.
            earlier = self.store.ledger.having({"earlier_runs": text}, limit=1)
            resumed = next(iter(earlier), None)
            if resumed is None or not verdicts.give(resumed, outcome):
                raise LogNotFoundError(
                    f"There is no log of a run {str(run_id)[:80]} in {self.namespace} (any more). "
                    "Give the id of a root run that has ended, or a log id."
                )
        self._worker.notify()

    def judge(self, log_id: str, outcome: Outcome) -> None:
        """Record what a judge says of a log; it gives way to what `feedback` said.

        Raises:
            LogNotFoundError: There is no such log.
        """
        self._check_open()
        if not self.store.verdicts.set(log_id, outcome):
            raise LogNotFoundError(f"There is no log {log_id} in {self.namespace} (any more).")
        self._worker.notify()

    def _count_feedback(self, ids: set[str], *, helped: bool) -> None:
        unknown = ids - self.store.ledger.count_feedback(ids, helped=helped)
        if unknown:
            raise LogNotFoundError(
                f"There is no log {', '.join(sorted(unknown))} in {self.namespace} (any more)."
            )

    def delete(self, log_ids: str | Iterable[str]) -> int:
        """Delete logs: traces, segments, index entries, work, and what is in memory.

        Returns:
            How many of them there were.
        """
        self._check_open()
        self._embedding.forget_queries()
        ids = [log_ids] if isinstance(log_ids, str) else list(log_ids)
        return len(self.store.delete(ids))

    def purge(self) -> int:
        """Delete everything of this namespace; gives the number of logs."""
        self._check_open()
        self._embedding.forget_queries()
        return self.store.purge()

    def prune(self) -> None:
        """Evict now what the budget demands; the worker does so by itself."""
        self._check_open()
        self._deriver.settle(thorough=True)

    def export_to(
        self,
        path: str | Path,
        *,
        segments: bool = False,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Archived:
        """Write this namespace to one portable file; see `store.archive`.

        Args:
            path: The file to write.
            segments: Put the segments in, too; without, they are made again from the traces.
            overwrite: Replace the file if it exists.
            progress: Called with the number of steps done, and of all.

        Raises:
            StoreError: The file exists already or cannot be written.
        """
        self._check_open()
        self._record_uses()
        return export_archive(
            self.store, path, segments=segments, overwrite=overwrite, progress=progress
        )

    def import_from(self, path: str | Path, progress: Progress | None = None) -> Archived:
        """Add what `export_to` wrote, whatever namespace it comes from; doing it again is fine.

        Raises:
            StoreError: The file is not a whole archive, or of a newer version.
        """
        self._check_open()
        archived = import_archive(self.store, path, progress)
        self._worker.notify()
        return archived

    def verify(self, progress: Progress | None = None) -> list[Problem]:
        """What does not agree with the ledger; an empty list if all is well."""
        self._check_open()
        return Audit(self.store, progress).verify()

    def repair(self, progress: Progress | None = None, *, min_age: float = 600.0) -> list[Problem]:
        """Make right what `verify` finds, as far as it can be; gives what was wrong.

        Args:
            progress: Called with the number of steps done and the number of steps in all.
            min_age: Seconds after which a file of no log is removed: before, it may belong to a
                write that is going on in another process.
        """
        self._check_open()
        problems = Audit(self.store, progress, min_age=min_age).repair()
        self._deriver.look_again()
        self._worker.notify()
        return problems

    def reindex(self, progress: Progress | None = None) -> None:
        """Embed every trace again with this memory's embedder, and make the index anew.

        A store has one embedder: other namespaces are embedded again when they are next used.
        """
        self._check_open()
        self._deriver.adopt_embedder()
        self.store.rebuild_index()
        self.flush(progress)

    def flush(self, progress: Progress | None = None) -> None:
        """Wait until everything added so far is embedded, indexed and, with a model, encoded.

        Args:
            progress: Called with the number of steps done and the number of steps in all.

        Raises:
            EncodingError: Some logs could not be derived; their traces are safe in the ledger, and
                the next `flush` tries them again. A log that fails again for the same reason is
                not reported twice.
            StoreError: The store fails, or the embedder is not the store's.
        """
        self._check_open()
        self.store.failures.clear()
        total = left = self._pending()
        told = 0.0
        while left:
            self._check_open()
            if self._step(thorough=True):
                if progress is not None and time.monotonic() - told > _TELL_EVERY:
                    progress(max(0, total - self._pending()), total)
                    told = time.monotonic()
            else:
                left = self._pending()
                if left:
                    wait_a_little()  # another process is at it
        if progress is not None:
            progress(total, total)
        while self.store.merge():
            pass
        self._settle(thorough=True)
        failures = {
            task: reason
            for task, reason in self.store.failures.all().items()
            if self._reported.get(task) != reason
        }
        self._reported.update(failures)
        if failures:
            first = [f"{key}: {reason}" for (key, _), reason in failures.items()][:_NAMED]
            reasons = "; ".join([*first, *(["…"] if len(failures) > _NAMED else [])])
            raise EncodingError(
                f"{len(failures)} logs could not be embedded or encoded (their traces are safe in "
                f"the ledger): {reasons}"
            )

    def embed_pending(self) -> None:
        """Wait until everything added so far is embedded, so that `recall` finds it.

        Raises:
            StoreError: The store or the embedder fails, or the embedder is not the store's.
        """
        self._check_open()
        while self._deriver.pending(None, ()):
            if not self._deriver.step(None, (), thorough=True):
                wait_a_little()  # another process is at it
            self._check_open()

    def close(self) -> None:
        """Finish the step at hand and release the store. Work left over is done after reopening."""
        with self._closing:
            if self._closed or self._process != os.getpid():  # a fork's is its parent's
                return
            self._closed = True
        forget(self)
        atexit.unregister(self.close)
        self._worker.stop()
        try:
            self._record_uses()
        except StoreError as error:
            logger.warning("How often logs were recalled could not be recorded. %s", error)
        self.store.close()

    def __repr__(self) -> str:
        return f"KVLogMemory({str(self.path)!r}, namespace={self.namespace!r})"

    @property
    def _usable_engine(self) -> Engine | None:
        engine = self._engine
        return None if engine is None or engine.closed else engine

    def _check_open(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                "This memory was opened before the process was forked; open one in each process."
            )
        if self._closed:
            raise StoreError(f"The memory at {self.path} is closed; open it again.")

    def _engine_for(self, engine: Engine | None) -> Engine:
        self._check_open()
        engine = engine or self._engine
        if engine is None:
            raise StoreError("No model is attached to the memory; call attach(engine) first.")
        return engine

    def _pending(self) -> int:
        return self._deriver.pending(self._usable_engine, self.outcomes)

    def _step(self, *, thorough: bool = False) -> bool:
        return self._deriver.step(self._usable_engine, self.outcomes, thorough=thorough)

    def _settle(self, *, thorough: bool = False) -> None:
        self._deriver.settle(thorough=thorough)
        self._record_uses()

    def _count_uses(self, ids: Sequence[str]) -> None:
        """Counted in memory, recorded by the worker: recall does not wait for the disk."""
        with self._uses_lock:
            self._uses.update(ids)
            due = bool(self._uses) and time.monotonic() - self._counted_at > _COUNT_EVERY
        if due:
            self._worker.notify()

    def _record_uses(self) -> None:
        with self._uses_lock:
            uses, self._uses = self._uses, Counter()
            self._counted_at = time.monotonic()
        if not uses:
            return
        try:
            self.store.ledger.count_uses(uses)
        except StoreError:
            with self._uses_lock:
                self._uses.update(uses)
            raise


def _recalled(found: Found, trace: Trace) -> RecalledLog:
    return RecalledLog(found.id, trace, round(found.score, 6), search_keys(trace)[found.key])


def _hex(run_id: str | UUID) -> str:
    """A run's id as traces have it; what is no UUID stays as it is."""
    try:
        return UUID(str(run_id)).hex
    except ValueError:
        return str(run_id)

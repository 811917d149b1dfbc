"""KVLogMemory: what agents did is captured, encoded in the background, and recalled."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, overload
from uuid import UUID, uuid4
from weakref import WeakSet

from typing_extensions import Self

from lag_integrations.engine.log_settings import Calibration
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import (
    CalibrationError,
    EncodingError,
    LogNotFoundError,
    StoreError,
)
from lag_integrations.kv.codecs import codec as codec_of
from lag_integrations.kv.segment import Segment
from lag_integrations.memory.indexer import Indexer
from lag_integrations.memory.quarantine import LogQuarantine
from lag_integrations.memory.registry import Registry
from lag_integrations.memory.results import Candidate, RecalledLog, SearchResult
from lag_integrations.memory.search import Searcher
from lag_integrations.memory.worker import Worker
from lag_integrations.store.archive import Archived, export_archive, import_archive
from lag_integrations.store.audit import Audit, Problem
from lag_integrations.store.backup import Copied, back_up
from lag_integrations.store.budget import Budget
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.filters import Where
from lag_integrations.store.ledger import chunks
from lag_integrations.store.locks import patiently, wait_a_little
from lag_integrations.store.matches import Floor
from lag_integrations.store.receipts import Receipt
from lag_integrations.store.reranker import Reranker
from lag_integrations.store.store import LogStore
from lag_integrations.traces.provenance import UNTRUSTED_TOOLS, Owner, UnjudgedDocuments
from lag_integrations.traces.screening import Gate, Redactor, Screen
from lag_integrations.traces.sources import SOURCES
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

MIN_RELEVANCE = 0.5
"""Least probability that a recalled log fits, by default."""
_COUNT_EVERY = 5.0
"""Seconds between two records of how often logs were recalled."""
_TELL_EVERY = 0.2
"""Seconds between two reports of progress."""
_NAMED = 5
"""Failures that an error names; memory.store.failures has all."""
_NAMES = 100
"""Sources that one question to the ledger names."""


class LogMemory:
    """A memory of computation: a folder of logs, and the KV segments of the models that use them.

    Adding a trace records it in the ledger at once; a worker thread embeds it, and encodes it with
    the model that is attached. Logs that a model has not encoded yet (captured before it was
    attached, or under another model) are encoded from their traces when recalled. Any number of
    threads and processes may use a folder at once.

    Args:
        path: Folder of the store; made if it does not exist.
        namespace: Tenant whose logs are seen; letters, digits, ``.``, ``_``, ``-``.
        embedder: See `Embedder`; the packaged all-MiniLM-L6-v2 by default, else the hub's.
        reranker: See `Reranker`: a cross-encoder that orders the logs that reach the floor; none by
            default. One that does not work is a warning.
        k: Most logs to recall.
        min_relevance: Least probability that a recalled log fits, from 0 to 1, as measured for the
            embedder (docs/recall.md). Below it, nothing is recalled rather than something
            unrelated.
        min_score: Least cosine similarity of a recalled log instead, from -1 to 1. Right values
            differ between embedders.
        outcomes: Logs with these outcomes are recalled; failures, and runs that were cancelled or
            cut off, are kept, but not recalled.
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
        screen: Asked for every trace before it is recorded, wherever it comes from: returns None to
            accept it, ``Quarantine("reason")`` to keep it without recalling it (see `quarantine`),
            ``Refuse("reason")`` not to store it. Where it fails, the trace is quarantined.
        redact: Called with every trace before that; returns it as it may be stored, metadata and
            all, or None to drop it. Where it fails, the trace is not stored.
        untrusted_tools: Names of tools that read what others wrote, as web pages and mail, or
            patterns of them (`fnmatch`, whatever the case): their results are documents. By default
            a guess by common names (`provenance.UNTRUSTED_TOOLS`).
        unjudged_documents: Who is given logs of runs that read documents and that nobody judged:
            with ``own``, runs of the same user (metadata ``user_id``, or ``user``), or without
            users, of the same thread; with ``any``, all.
        ledger: SQLAlchemy URL of a PostgreSQL database; an SQLite file in the folder by default.
        segments: Folder or fsspec URL for the segments; in the folder by default.
        index: URL of a Chroma server, or a Chroma client; embedded in the folder by default.

    Attributes:
        id: Names this object among those of the process.
        store: The log store of the namespace, for maintenance.
        quarantine: The logs that `screen` put aside.

    Raises:
        StoreError: A name or number is not valid, or the store cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        namespace: str = "default",
        embedder: Any = None,
        reranker: Any = None,
        k: int = 3,
        min_relevance: float = MIN_RELEVANCE,
        min_score: float | None = None,
        outcomes: Sequence[Outcome] = ("success", "unknown"),
        diversity: float = 0.0,
        selection: Selection | None = None,
        codec: str = "native",
        max_bytes: int | None = None,
        max_logs: int | None = None,
        ttl: timedelta | float | None = None,
        hot_bytes: int = 512 * 2**20,
        max_pending: int = 1_000,
        screen: Screen | None = None,
        redact: Redactor | None = None,
        untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS,
        unjudged_documents: UnjudgedDocuments = "own",
        ledger: str | None = None,
        segments: str | None = None,
        index: str | ClientAPI | None = None,
    ) -> None:
        self.id = uuid4().hex
        self.k = k
        self.min_relevance = min_relevance
        self.min_score = min_score
        self.outcomes = tuple(outcomes)
        self.diversity = diversity
        self.unjudged_documents = _checked(unjudged_documents)
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
            gate=Gate(screen, redact, tuple(untrusted_tools)),
        )
        self._process = os.getpid()
        self.path = self.store.path
        self.namespace = namespace
        self._indexer = Indexer(
            self.store,
            self._embedding,
            selection=selection,
            codec=codec,
            budget=budget,
            record_uses=self._record_uses,
        )
        self._searcher = Searcher(
            self.store, self._indexer, None if reranker is None else Reranker(reranker)
        )
        self._engine: Engine | None = None
        self._engines: WeakSet[Engine] = WeakSet()  # whose prefix caches may hold something of ours
        self._shared: dict[str, Calibration | None] = {}  # by model, as last seen
        self._reported: dict[tuple[str, str], str] = {}
        self._last_deletion = self.store.metadata.last_deletion(namespace)
        self._uses: Counter[str] = Counter()
        self._uses_lock = threading.Lock()
        self._counted_at = time.monotonic()
        self._closing = threading.Lock()
        self._closed = False
        self._worker = Worker(self._step, self._settle, self._pending, max_pending)
        self.quarantine = LogQuarantine(self.store.ledger, self._worker.notify)
        if self.store.read_only:
            logger.info("%s can only be read: nothing is captured, recalls are not counted.", path)
            self._worker.stop()
        # A worker inside torch while the interpreter goes down would crash it.
        atexit.register(self.close)
        open_memories.register(self)
        unfinished = self.store.embeddings.count_missing(limit=1) or self.store.deletion_queue.next(
            1
        )
        if unfinished or budget != Budget():
            self._worker.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, engine: Engine) -> None:
        """Let a model encode this memory's logs from now on; `LAGChatModel` does this itself."""
        self._share_calibration(engine)
        self._engines.add(engine)
        if self._engine is not None and self._engine.fingerprint.id == engine.fingerprint.id:
            self._engine = engine
            return
        known = self.store.metadata.models()
        if known and engine.fingerprint.id not in known:
            for parts in known.values():
                logger.info(
                    "This store was used by another model, which differs in %s; its logs will be "
                    "encoded again from their traces.",
                    ", ".join(engine.fingerprint.differences(parts)),
                )
        self.store.metadata.add_model(engine.fingerprint.id, engine.fingerprint.to_json())
        self._engine = engine
        self._worker.notify()

    def _share_calibration(self, engine: Engine) -> None:
        """Keep a model's calibration in the store, and give it the store's if it has none."""
        model = engine.fingerprint.id
        if model in self._shared and self._shared[model] is engine.calibration:
            return
        stored = self.store.metadata.calibration(model)
        found = None
        if stored is not None:
            try:
                found = Calibration.from_json(stored)
                if engine.calibration is None:
                    engine.use_calibration(found)
            except CalibrationError as error:
                logger.warning("A calibration in %s is not used: %s", self.path, error)
        if engine.calibration is not None and engine.calibration != found:
            self.store.metadata.set_calibration(model, engine.calibration.model_dump_json())
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

    def recall(
        self,
        query: str,
        *,
        before: str | None = None,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        diversity: float | None = None,
        newest_only: bool = False,
        skip: Callable[[Trace], bool] | None = None,
        count: bool = True,
        user: str | None = None,
        thread: str | None = None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> list[RecalledLog]:
        """Return the logs that fit a query, the most relevant first.

        Args:
            query: The new task.
            before: What the user said before it. Where the task alone recalls nothing, it is
                searched for behind that, since "And how much does it cost?" says too little; what
                fits the message before better than both is left out.
            k: Most logs to return; the memory's own by default, as for all that follow.
            min_relevance: Least probability that a log fits.
            min_score: Least cosine similarity instead.
            where: Only logs with such metadata, in Chroma's filter language (see
                `store.filters.condition`): ``{"project": "x", "year": {"$gte": 2025}}``.
            outcomes: Only logs with these outcomes.
            diversity: How much the logs shall differ from each other.
            newest_only: Of logs of one task only the newest; and newer ones first where tasks are
                alike. So models and agents are given them.
            skip: Says whether a log is left out; the next one takes its place.
            count: Whether this counts as a use of the logs, which keeps them longer.
            user: Whose run asks: unjudged runs that read documents are its users' only. What the
                filter says of ``user_id`` and ``thread_id`` goes before.
            thread: The thread of that run.
            unjudged_documents: Who is given such logs.

        Raises:
            StoreError: The filter is malformed, or the store fails.
        """
        return self.search(
            query,
            before=before,
            k=k,
            min_relevance=min_relevance,
            min_score=min_score,
            where=where,
            outcomes=outcomes,
            diversity=diversity,
            newest_only=newest_only,
            skip=skip,
            count=count,
            user=user,
            thread=thread,
            unjudged_documents=unjudged_documents,
        ).logs

    def search(
        self,
        query: str,
        *,
        before: str | None = None,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        diversity: float | None = None,
        newest_only: bool = False,
        skip: Callable[[Trace], bool] | None = None,
        count: bool = True,
        user: str | None = None,
        thread: str | None = None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> SearchResult:
        """As `recall`, with the nearest miss where nothing is recalled."""
        self._check_open()
        k = self.k if k is None else k
        if k < 1 or not query.strip():
            return SearchResult()
        found = self._searcher.search(
            query,
            before=before,
            k=k,
            floor=self._floor(min_relevance, min_score),
            outcomes=self.outcomes if outcomes is None else outcomes,
            where=where,
            diversity=self.diversity if diversity is None else diversity,
            newest_only=newest_only,
            skip=skip,
            owner=self._owner(user, thread, unjudged_documents),
        )
        if count and found.logs:
            self.count_uses([log.id for log in found.logs])
        return found

    def count_uses(self, log_ids: Collection[str]) -> None:
        """Count logs as used, which keeps them longer; for a search that does not (`count`)."""
        if self.store.read_only:
            return
        with self._uses_lock:  # recorded by the worker: recall does not wait for the disk
            self._uses.update(log_ids)
            due = bool(self._uses) and time.monotonic() - self._counted_at > _COUNT_EVERY
        if due:
            self._worker.notify()

    def explain(
        self,
        query: str,
        *,
        k: int | None = None,
        min_relevance: float | None = None,
        min_score: float | None = None,
        where: Where | None = None,
        outcomes: Sequence[Outcome] | None = None,
        limit: int = 10,
        user: str | None = None,
        thread: str | None = None,
    ) -> list[Candidate]:
        """Return the logs nearest to a query, and why each is or is not recalled.

        Args:
            query: As for `recall`, as for all that follow but `limit`.
            k: Most logs.
            min_relevance: Least probability.
            min_score: Least similarity.
            where: The filter.
            outcomes: The outcomes.
            limit: Most logs to return.
            user: Whose run asks.
            thread: Its thread.

        Raises:
            StoreError: As for `recall`.
        """
        self._check_open()
        if not query.strip():
            return []
        return self._searcher.explain(
            query,
            k=self.k if k is None else k,
            floor=self._floor(min_relevance, min_score),
            outcomes=self.outcomes if outcomes is None else outcomes,
            where=where,
            limit=limit,
            owner=self._owner(user, thread),
        )

    def _owner(
        self,
        user: str | None,
        thread: str | None,
        unjudged_documents: UnjudgedDocuments | None = None,
    ) -> Owner | None:
        """Who asks; None for one who is given all."""
        if (unjudged_documents or self.unjudged_documents) == "any":
            return None
        return Owner(user, thread)

    def _floor(self, min_relevance: float | None, min_score: float | None) -> Floor:
        """A call's floor; the memory's, if it says nothing."""
        if min_relevance is None and min_score is None:
            return Floor(self.min_relevance, self.min_score)
        return Floor(self.min_relevance if min_relevance is None else min_relevance, min_score)

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
            self._indexer.segment(log.id, log.trace, engine) if segment is None else segment
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
            if segment is None and not self.store.read_only:  # an evicted one is wanted again
                self.store.segments.forget(self._indexer.key(log.id, engine), None)
        if None in found:
            self._indexer.rescan()
            self._worker.notify()
        return found

    def _stored_segments(self, logs: Sequence[RecalledLog], engine: Engine) -> list[Segment | None]:
        self._heed_deletions()
        files = self.store.segments.files(self._indexer.key("", engine), [log.id for log in logs])
        found: list[Segment | None] = []
        for log in logs:
            if log.id not in files:
                raise LogNotFoundError(f"There is no log {log.id} in {self.namespace} (any more).")
            found.append(self._indexer.load(log.id, log.trace, files[log.id], engine))
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
            outcome: ``success``, ``failure``, ``incomplete`` or ``unknown``.

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

    @overload
    def delete(self, log_ids: str | Iterable[str], *, wait: bool = False) -> Receipt: ...

    @overload
    def delete(self, *, where: Where, wait: bool = False) -> Receipt: ...

    def delete(
        self,
        log_ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        wait: bool = False,
    ) -> Receipt:
        """Delete logs: traces, segments, index entries, work, and what is in memory.

        When this returns, nobody recalls them any more, and the ledger has nothing of them. Their
        files and index entries are removed by the worker, several logs' at once; by the next who
        opens the store, if this one is closed before.

        Args:
            log_ids: Their ids.
            where: Instead, all logs with such metadata, whatever their outcome (see `recall`):
                ``{"sources": "doc-7"}`` for those of runs that were shown a document.
            wait: Return when files and index entries are gone, too, as `flush` does.

        Returns:
            Which of them there were, and what may remain of them for how long.

        Raises:
            StoreError: Neither or both are given, or the filter is malformed; nothing is deleted.
                Or, with `wait`: they are deleted, but something of theirs cannot be removed yet.
        """
        self._check_open()
        if where is not None and log_ids is None:
            ids = list(self.store.ledger.ids(where))
        elif log_ids is not None and where is None:
            ids = [log_ids] if isinstance(log_ids, str) else list(log_ids)
        else:
            raise StoreError("Say which logs are to be deleted: either their ids, or where=….")
        deleted = self.store.delete(ids)
        self._forget_what_was_read()
        if wait:
            self.store.finish_removals()
        elif deleted:
            self._worker.notify()
        return self.store.receipt(deleted, swept=wait)

    def purge(self) -> Receipt:
        """Delete everything of this namespace, with all files, and write anew what held it.

        The embedded index and a PostgreSQL ledger's tables are written anew, for which others wait.

        Returns:
            Which logs there were, and what may remain of them for how long.

        Raises:
            StoreError: The logs are deleted, but something of theirs cannot be removed yet.
        """
        self._check_open()
        try:
            return self.store.purge()
        finally:
            self._forget_what_was_read()

    def cache_salt(self, engine: Engine) -> str:
        """Return under which salt a model reads this namespace's prompts and traces.

        Args:
            engine: The model; what it has read is forgotten when logs are deleted.
        """
        self._engines.add(engine)
        self._heed_deletions()
        return self.store.cache_salt

    def _heed_deletions(self) -> None:
        """Let go of what is held in memory of logs, if another process has deleted some."""
        try:
            last = self.store.metadata.last_deletion(self.namespace)
            if last == self._last_deletion:
                return
            self.store.let_go()
            self._last_deletion = last
        except StoreError as error:
            logger.warning("What others deleted cannot be seen now. %s", error)
        self._forget_what_was_read()

    def _forget_what_was_read(self) -> None:
        self._embedding.forget_queries()
        for engine in list(self._engines):
            engine.forget(self.store.cache_salt)

    def prune(self) -> None:
        """Evict now what the budget demands; the worker does so by itself."""
        self._check_open()
        self._indexer.maintain(thorough=True)

    def export_to(
        self,
        path: str | Path,
        *,
        segments: bool = False,
        overwrite: bool = False,
        key: bytes | None = None,
        progress: Progress | None = None,
    ) -> Archived:
        """Write this namespace to one portable file; see `store.archive`.

        Args:
            path: The file to write.
            segments: Put the segments in, too; without, they are made again from the traces.
            overwrite: Replace the file if it exists.
            key: Secret to sign it with, at least 32 bytes, which the store that imports it has to
                be given, too; this store's own by default.
            progress: Called with the number of steps done, and of all.

        Raises:
            StoreError: The key is too short, or the file exists already or cannot be written.
        """
        self._check_open()
        self._record_uses()
        return export_archive(
            self.store, path, segments=segments, overwrite=overwrite, key=key, progress=progress
        )

    def import_from(
        self,
        path: str | Path,
        progress: Progress | None = None,
        *,
        key: bytes | None = None,
        segments: bool = True,
    ) -> Archived:
        """Add what `export_to` wrote, whatever namespace it comes from; doing it again is fine.

        Anybody may have written an archive that neither this store nor the owner of the key signed:
        its segments are left out and made again, and so are some counters; see `store.archive`.

        Args:
            path: The archive.
            progress: Called with the number of steps done, and of all.
            key: Secret that the archive must be signed with.
            segments: Take the segments, if the archive is trusted; else they are made again.

        Raises:
            StoreError: The file is not a whole archive, of a newer version, or not signed with the
                key that was given; nothing was added.
        """
        self._check_open()
        archived = import_archive(self.store, path, progress, key=key, segments=segments)
        self._worker.notify()
        return archived

    def change_key(self) -> None:
        """Take a new secret for the segment files of all namespaces, as when it may be known.

        Nothing signed with the old one is trusted any more: segments are made again, and archives
        that this store wrote count as anybody's.
        """
        self._check_open()
        self.store.change_key()
        self._indexer.rescan()
        self._worker.notify()

    def backup_to(
        self, path: str | Path, *, segments: bool = True, progress: Progress | None = None
    ) -> Copied:
        """Copy the whole store, all namespaces, to a new folder, while others may write.

        Everything that was added before is in it. `store.backup.restore` makes a store of it.

        Args:
            path: The new folder.
            segments: Copy the segments, too; without, they are made again from the traces.
            progress: Called with the number of segments done, and of all.

        Raises:
            StoreError: The folder exists already or cannot be written, or the ledger is on a
                server.
        """
        self._check_open()
        self._record_uses()
        return back_up(self.store, path, segments=segments, progress=progress)

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
        self._indexer.rescan()
        self._worker.notify()
        return problems

    def reindex(self, progress: Progress | None = None) -> None:
        """Embed every trace again with this memory's embedder, and make the index anew.

        A store has one embedder: other namespaces are embedded again when they are next used.
        """
        self._check_open()
        self._indexer.adopt_embedder()
        self.store.vectors.rebuild()
        self.flush(progress)

    def flush(self, progress: Progress | None = None) -> None:
        """Wait until all that is to do is done.

        Everything added so far is embedded, indexed and, with a model, encoded; of what was
        deleted, files and index entries are gone.

        Args:
            progress: Called with the number of steps done and the number of steps in all.

        Raises:
            EncodingError: Some logs could not be derived; their traces are safe in the ledger, and
                the next `flush` tries them again. A log that fails again for the same reason is
                not reported twice.
            BusyError: Others have held something for a minute.
            StoreError: The store fails, or the embedder is not the store's.
        """
        self._check_open()
        self.store.failures.clear()
        total = left = self._pending()
        told = 0.0
        while left:
            self._check_open()
            if patiently(partial(self._step, thorough=True)):
                if progress is not None and time.monotonic() - told > _TELL_EVERY:
                    progress(max(0, total - self._pending()), total)
                    told = time.monotonic()
            else:
                left = self._pending()
                if left:
                    wait_a_little()  # another process is at it
        if progress is not None:
            progress(total, total)
        self.store.retry_removals()  # first: what was added again since is then merged again
        while patiently(self.store.vectors.merge):
            pass
        patiently(partial(self._settle, thorough=True))
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
        while self.store.embeddings.count_missing(limit=1):
            if not self._indexer.embed_some():
                wait_a_little()  # another process is at it
            self._check_open()

    def close(self) -> None:
        """Finish the step at hand and release the store. Work left over is done after reopening."""
        with self._closing:
            if self._closed or self._process != os.getpid():  # a fork's is its parent's
                return
            self._closed = True
        open_memories.unregister(self)
        atexit.unregister(self.close)
        self._worker.stop()
        self._forget_what_was_read()
        try:
            self._record_uses()
        except StoreError as error:
            logger.warning("How often logs were recalled could not be recorded. %s", error)
        self.store.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, namespace={self.namespace!r})"

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
        return self._indexer.pending(self._usable_engine, self.outcomes)

    def _step(self, *, thorough: bool = False) -> bool:
        return self._indexer.run_once(self._usable_engine, self.outcomes, thorough=thorough)

    def _settle(self, *, thorough: bool = False) -> None:
        self._indexer.maintain(thorough=thorough)
        self._record_uses()

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


def _checked(unjudged_documents: UnjudgedDocuments) -> UnjudgedDocuments:
    if unjudged_documents not in get_args(UnjudgedDocuments):
        raise StoreError(
            f"unjudged_documents is {str(unjudged_documents)[:80]!r}; it must be 'own' or 'any'."
        )
    return unjudged_documents


def _hex(run_id: str | UUID) -> str:
    """A run's id as traces have it; what is no UUID stays as it is."""
    try:
        return UUID(str(run_id)).hex
    except ValueError:
        return str(run_id)


open_memories: Registry[LogMemory] = Registry()
"""The memories that are open in this process."""

"""What every part of a memory shares: its store, its models, its worker."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from weakref import WeakMethod, WeakSet, WeakValueDictionary, finalize

from typing_extensions import Self

from lag_integrations.engine.log_settings import Calibration
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import CalibrationError, SettingsError, StoreError
from lag_integrations.memory.indexer import Indexer
from lag_integrations.memory.lessons.background import BackgroundLearning
from lag_integrations.memory.lessons.learner import MAX_NEW_TOKENS, Learner
from lag_integrations.memory.lessons.teacher import Teacher
from lag_integrations.memory.loading import SegmentLoader
from lag_integrations.memory.quarantine import LogQuarantine
from lag_integrations.memory.registry import open_memories
from lag_integrations.memory.search import Searcher
from lag_integrations.memory.setting_checks import check_outcomes, check_settings
from lag_integrations.memory.usage import UsageCounter
from lag_integrations.memory.worker import Worker
from lag_integrations.store.budget import Budget
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.floor import MIN_RELEVANCE
from lag_integrations.store.reranker import Reranker
from lag_integrations.store.store import LogStore
from lag_integrations.traces.provenance import UNTRUSTED_TOOLS, UnjudgedDocuments
from lag_integrations.traces.screening import Gate, Redactor, Screen
from lag_integrations.traces.trace import Outcome

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)


class MemoryBase:
    """Opens a store, lets models encode its logs in the background, and closes it.

    Attributes:
        id: Names this object among those of the process.
        store: The log store of the namespace, for maintenance.
        quarantine: The logs that `screen` put aside.
        usage: Counts which logs were recalled.
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
        learn: Any = False,
        ledger: str | None = None,
        segments: str | None = None,
        index: str | ClientAPI | None = None,
    ) -> None:
        """Open a memory; its folder is made if it does not exist.

        Args:
            path: Folder of the store.
            namespace: Tenant whose logs are seen; letters, digits, ``.``, ``_``, ``-``.
            embedder: See `Embedder`; the packaged all-MiniLM-L6-v2 by default, else the hub's.
            reranker: See `Reranker`: a cross-encoder that orders the logs that reach the floor;
                none by default. One that does not work is a warning.
            k: Most logs to recall.
            min_relevance: Least probability that a recalled log fits, from 0 to 1, as measured for
                the embedder (docs/recall.md). Below it, nothing is recalled rather than something
                unrelated.
            min_score: Least cosine similarity of a recalled log instead, from -1 to 1. Right values
                differ between embedders.
            outcomes: Logs with these outcomes are recalled; failures, and runs that were cancelled
                or cut off, are kept, but not recalled.
            diversity: From 0 (the nearest logs) to 1 (logs that differ): maximal marginal relevance
                with ``lambda = 1 - diversity``. Keeps near-duplicates from taking every place.
            selection: Which tokens of a trace become its segment; by default what the model's
                calibration says, else `TaskAndLastTurns`.
            codec: How segments are stored: ``native`` (the model's dtype), ``fp32``, ``bf16``,
                ``fp16``, ``fp8``, ``int8``, ``int4``, each also lossless compressed
                (``int8+zstd``).
            max_bytes: Budget of the namespace for traces and segments. The segments of the least
                recent and least useful logs go first; they are made again when they are recalled.
            max_logs: Most logs in the namespace; the least recent and least useful are deleted.
            ttl: Age (a ``timedelta``, or seconds) at which logs are deleted, from their last
                capture.
            hot_bytes: Most bytes of segments to keep in memory.
            max_pending: Logs that may wait for the worker before `add` waits too (a second at
                most).
            screen: Asked for every trace before it is recorded, wherever it comes from: returns
                None to accept it, ``Quarantine("reason")`` to keep it without recalling it (see
                `quarantine`), ``Refuse("reason")`` not to store it. Where it fails, the trace is
                quarantined.
            redact: Called with every trace before that; returns it as it may be stored, metadata
                and all, or None to drop it. Where it fails, the trace is not stored.
            untrusted_tools: Names of tools that read what others wrote, as web pages and mail, or
                patterns of them (`fnmatch`, whatever the case): their results are documents. By
                default a guess by common names (`UNTRUSTED_TOOLS`).
            unjudged_documents: Who is given logs of runs that read documents and that nobody
                judged: with ``own``, runs of the same user (metadata ``user_id``, or ``user``), or
                without users, of the same thread; with ``any``, all.
            learn: Make lessons in the background, while nothing else is to do (see `learn`): True
                has the attached model distil them, or say which model does. Closing the memory
                waits for a lesson that another model is writing; the attached model stops.
            ledger: SQLAlchemy URL of a PostgreSQL database; an SQLite file in the folder by
                default.
            segments: Folder or fsspec URL for the segments; in the folder by default.
            index: URL of a Chroma server, or a Chroma client; embedded in the folder by default.

        Raises:
            StoreError: A namespace, codec or budget is not valid, or the store cannot be opened.
            SettingsError: A setting is not valid.
        """
        from lag_integrations.kv.codecs import codec as codec_of  # torch, when it is needed

        check_settings(
            k=k,
            min_relevance=min_relevance,
            min_score=min_score,
            diversity=diversity,
            hot_bytes=hot_bytes,
            max_pending=max_pending,
            unjudged_documents=unjudged_documents,
            untrusted_tools=untrusted_tools,
            screen=screen,
            redact=redact,
        )
        self.id = uuid4().hex
        self.k = k
        self.min_relevance = min_relevance
        self.min_score = min_score
        self.outcomes = check_outcomes(outcomes)
        self.diversity = diversity
        self.unjudged_documents = unjudged_documents
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
        self.usage = UsageCounter(self.store)
        self._process = os.getpid()
        self.path = self.store.path
        self.namespace = namespace
        self._indexer = Indexer(
            self.store,
            self._embedding,
            selection=selection,
            codec=codec,
            budget=budget,
            record_uses=self.usage.record,
        )
        self._learner = Learner(
            self.store,
            self._indexer.embeddings,
            self.outcomes,
            shared=unjudged_documents == "any",
        )
        self._learn_with = None if isinstance(learn, bool) else learn
        self._background = BackgroundLearning(self.store, self._learner) if learn else None
        self._segments = SegmentLoader(self._indexer.segments, self._indexer.whole_traces)
        self._searcher = Searcher(
            self.store, self._indexer.embeddings, None if reranker is None else Reranker(reranker)
        )
        self._engine: Engine | None = None
        self._attached: WeakValueDictionary[str, Engine] = WeakValueDictionary()  # by fingerprint
        self._readers: WeakSet[Engine] = WeakSet()  # whose prefix caches may hold something of ours
        self._shared: dict[str, Calibration | None] = {}  # by model, as last seen
        self._reported: dict[tuple[str, str], str] = {}
        self._last_deletion = self.store.metadata.last_deletion(namespace)
        self._closing = threading.Lock()
        self._closed = False
        self._worker = Worker(
            WeakMethod(self._run_once),
            WeakMethod(self._maintain),
            WeakMethod(self._pending),
            max_pending,
            at_end=partial(_release, self.usage, self.store),
        )
        # One that nobody closed: its worker ends, and releases the store.
        self._finalizer = finalize(self, self._worker.abandon)
        self._finalizer.atexit = False
        self.quarantine = LogQuarantine(self.store.ledger, self._worker.notify)
        if self._learn_with is not None:  # what is no model is refused now, not by the worker
            self._teacher(self._learn_with, MAX_NEW_TOKENS, lambda: False)
        if self.store.read_only:
            logger.info("%s can only be read: nothing is captured, recalls are not counted.", path)
            self._worker.stop()
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
        """Let a model encode this memory's logs from now on, too; `LAGChatModel` does this itself.

        Several models may be attached: each gets segments of its own. One that nobody uses any
        more is let go, but for the last.
        """
        self._share_calibration(engine)
        self._readers.add(engine)
        self._engine = engine
        if engine.fingerprint.id in self._attached:
            self._attached[engine.fingerprint.id] = engine  # perhaps loaded a second time
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
        self._attached[engine.fingerprint.id] = engine
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

    def cache_salt(self, engine: Engine) -> str:
        """Return under which salt a model reads this namespace's prompts and traces.

        Args:
            engine: The model; what it has read is forgotten when logs are deleted.
        """
        self._readers.add(engine)
        self._check_deletions()
        return self.store.cache_salt

    def _check_deletions(self) -> None:
        """Let go of what is held in memory of logs, if another process has deleted some."""
        try:
            last = self.store.metadata.last_deletion(self.namespace)
            if last == self._last_deletion:
                return
            self.store.drop_deleted()
            self._last_deletion = last
        except StoreError as error:
            logger.warning("What others deleted cannot be seen now. %s", error)
        self._clear_prefixes()

    def _clear_prefixes(self) -> None:
        self._embedding.forget_queries()
        for engine in list(self._readers):
            engine.clear_salt(self.store.cache_salt)

    def close(self) -> None:
        """Finish the step at hand and release the store. Work left over is done after reopening."""
        with self._closing:
            if self._closed or self._process != os.getpid():  # a fork's is its parent's
                return
            self._closed = True
        open_memories.unregister(self)
        self._worker.stop()
        self._clear_prefixes()
        self._finalizer.detach()
        _release(self.usage, self.store)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, namespace={self.namespace!r})"

    @property
    def _engines(self) -> list[Engine]:
        """The attached models that are still open."""
        # A copy at once: another thread may attach a model meanwhile.
        attached = [reference() for reference in self._attached.valuerefs()]
        return [engine for engine in attached if engine is not None and not engine.closed]

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

    def _teacher(self, model: Any, max_new_tokens: int, cancelled: Callable[[], bool]) -> Teacher:
        """Return what distils lessons: a model, the attached one by default.

        Raises:
            SettingsError: It is neither an engine nor a function.
            StoreError: No model is given or attached.
        """
        from lag_integrations.engine.engine import Engine

        if model is None or isinstance(model, Engine):
            engine = self._engine_for(model)
            salt = self.cache_salt(engine)
            return Teacher.of_engine(engine, max_new_tokens, salt, cancelled)
        if not callable(model):
            raise SettingsError(
                f"A {type(model).__name__} cannot distil lessons: give an Engine, a chat model of "
                "LangChain, an LLM of LlamaIndex, or a function from a prompt to an answer."
            )
        return Teacher.of_function(model, cancelled)

    def _pending(self) -> int:
        return self._indexer.count_pending(self._engines, self.outcomes)

    def _run_once(self, *, full_scan: bool = False) -> bool:
        return self._indexer.run_once(self._engines, self.outcomes, full_scan=full_scan)

    def _maintain(self, *, full_scan: bool = False) -> None:
        self._indexer.maintain(full_scan=full_scan)
        self.usage.record()


def _release(usage: UsageCounter, store: LogStore) -> None:
    """Close the store of a memory that nobody closed."""
    try:
        usage.record()
    except StoreError as error:
        logger.warning("How often logs were recalled could not be recorded. %s", error)
    store.close()


@atexit.register
def _close_all() -> None:
    """Close what is open: a worker inside torch while the interpreter goes down would crash it."""
    for memory in open_memories.all():
        memory.close()

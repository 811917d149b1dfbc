"""KVLogMemory: what agents did is captured, encoded in the background, and recalled."""

from __future__ import annotations

import atexit
import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lag_integrations import packaged
from lag_integrations.errors import (
    EmbedderMismatchError,
    EncodingError,
    LAGError,
    PackagedModelError,
    SegmentCorruptedError,
    StoreError,
    TraceError,
)
from lag_integrations.kv.codec import read_segment, write_segment
from lag_integrations.kv.segment import Segment
from lag_integrations.kv.selection import LastResponse, Selection
from lag_integrations.store.embedder import DEFAULT_EMBEDDER, Embedder, Vectors
from lag_integrations.store.index import Index
from lag_integrations.store.ledger import Ledger
from lag_integrations.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.engine import Engine
    from lag_integrations.langchain.callbacks import CaptureHandler

logger = logging.getLogger(__name__)

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BATCH = 64
_PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class RecalledLog:
    """A log that fits a query.

    Attributes:
        id: Its log id.
        log: Its trace.
        score: Cosine similarity of the query and the log's question and last response.
    """

    id: str
    log: Trace
    score: float


class KVLogMemory:
    """A memory of computation: a folder of logs, and the KV segments of the models that use them.

    Adding a trace records it in the ledger at once; a worker thread embeds it, and encodes it with
    the model that is attached. Logs that a model has not encoded yet (captured before it was
    attached, or under another model) are encoded from their traces when recalled. Thread safe.

    Args:
        path: Folder of the store; made if it does not exist.
        namespace: Tenant whose logs are seen; letters, digits, ``.``, ``_``, ``-``.
        embedder: See `Embedder`; the packaged all-MiniLM-L6-v2 by default, else the hub's.
        k: Most logs to recall.
        min_score: Least cosine similarity of a recalled log, from -1 to 1. Below it, nothing is
            recalled rather than something unrelated. Right values differ between embedders.
        outcomes: Logs with these outcomes are recalled; failures are kept, but not recalled.
        selection: Which tokens of a trace become its segment.

    Raises:
        StoreError: The namespace is not a valid name, or the folder is not a log store.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        namespace: str = "default",
        embedder: Any = None,
        k: int = 3,
        min_score: float = 0.5,
        outcomes: Sequence[Outcome] = ("success", "unknown"),
        selection: Selection | None = None,
    ) -> None:
        if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
            raise StoreError(
                f"{str(namespace)[:80]!r} is not a valid namespace. Use 1 to 64 letters, digits, "
                "'.', '_' or '-', beginning with a letter or digit."
            )
        self.path = Path(path)
        self.namespace = namespace
        self.k = k
        self.min_score = min_score
        self.outcomes = tuple(outcomes)
        self.selection = selection or LastResponse()
        self._embedder = Embedder(_default_embedder() if embedder is None else embedder)
        self._embedder_checked = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be used as a folder: {error}") from error
        self._ledger = Ledger(self.path / "ledger.sqlite")
        try:
            self._index = Index(self.path / "index", namespace)
        except StoreError:
            self._ledger.close()
            raise
        if self._index.count() < self._ledger.count_indexed(namespace):
            logger.warning("The index of %s has lost logs; they are embedded again.", self.path)
            self._ledger.forget_index(namespace)
        self._engine: Engine | None = None
        self._work_lock = threading.RLock()
        self._start_lock = threading.Lock()
        self._reported: dict[str, str] = {}
        self._wake = threading.Event()
        self._closed = False
        self._worker: threading.Thread | None = None
        # A worker inside torch while the interpreter goes down would crash it.
        atexit.register(self.close)

    def __enter__(self) -> KVLogMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, engine: Engine) -> None:
        """Let a model encode this memory's logs from now on; `LAGChatModel` does this itself."""
        if self._engine is not None and self._engine.fingerprint.id == engine.fingerprint.id:
            self._engine = engine
            return
        known = self._ledger.models()
        if known and engine.fingerprint.id not in known:
            for parts in known.values():
                logger.info(
                    "This store was used by another model, which differs in %s; its logs will be "
                    "encoded again from their traces.",
                    ", ".join(engine.fingerprint.differences(parts)),
                )
        self._ledger.add_model(engine.fingerprint.id, engine.fingerprint.to_json())
        self._engine = engine
        self._notify()

    def add(self, trace: Trace) -> str:
        """Record a trace; it is on disk when this returns, and recalled once the worker is done.

        Args:
            trace: A run in which the assistant said something.

        Returns:
            The log's id. A trace with the same content gets the id that it got before.

        Raises:
            TraceError: The trace has no assistant response, so there is nothing to reuse.
        """
        self._check_open()
        if not any(
            message.role == "assistant" and not message.is_empty for message in trace.messages
        ):
            raise TraceError(
                "The trace has no assistant response, so there is no computation to reuse; add "
                "traces of runs in which the model answered."
            )
        key = self._ledger.add(self.namespace, trace)
        self._notify()
        return key

    def recall(
        self, query: str, *, k: int | None = None, min_score: float | None = None
    ) -> list[RecalledLog]:
        """The logs that fit a query, best first.

        Args:
            query: The new task.
            k: Most logs to return; the memory's own `k` by default.
            min_score: Least similarity; the memory's own by default.
        """
        self._check_open()
        k = self.k if k is None else k
        floor = self.min_score if min_score is None else min_score
        if k < 1 or not query.strip():
            return []
        found = self._index.search(self._embed_query(query), k=k, outcomes=self.outcomes)
        near = [(key, score) for key, score in found if score >= floor]
        # By id from the ledger, which checks the namespace again and knows what was deleted.
        traces = self._ledger.get(self.namespace, [key for key, _ in near])
        return [
            RecalledLog(key, traces[key], round(score, 6)) for key, score in near if key in traces
        ]

    def segments(self, logs: Sequence[RecalledLog], engine: Engine | None = None) -> list[Segment]:
        """The segments of recalled logs, in the same order.

        A segment that does not exist yet, or whose file is damaged, is encoded from its trace.

        Args:
            logs: What `recall` gave.
            engine: The model that is to use them; the attached one by default.

        Raises:
            StoreError: No model is given or attached.
            LAGError: A trace cannot be encoded by this model; says why.
        """
        self._check_open()
        engine = engine or self._engine
        if engine is None:
            raise StoreError("No model is attached to the memory; call attach(engine) first.")
        return [self._segment(log.id, log.log, engine) for log in logs]

    def flush(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Wait until everything added so far is embedded and, with a model attached, encoded.

        Args:
            progress: Called with the number of steps done and the number of steps in all.

        Raises:
            EncodingError: Some logs could not be derived; their traces are safe in the ledger, and
                the next `flush` tries them again. A log that fails again for the same reason is
                not reported twice.
        """
        self._check_open()
        self._ledger.clear_failures(self.namespace)
        total = self._pending()
        while self._derive_some():
            if progress is not None:
                progress(max(0, total - self._pending()), total)
        failures = {
            key: reason
            for key, reason in self._ledger.failures(self.namespace).items()
            if self._reported.get(key) != reason
        }
        self._reported.update(failures)
        if failures:
            reasons = "; ".join(f"{key}: {reason}" for key, reason in failures.items())
            raise EncodingError(
                f"{len(failures)} logs could not be embedded or encoded (their traces are safe in "
                f"the ledger): {reasons}"
            )

    def close(self) -> None:
        """Finish the step at hand and release the store. Work left over is done after reopening."""
        with self._start_lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._wake.set()
        if self._worker is not None and self._worker is not threading.current_thread():
            self._worker.join()
        with self._work_lock:
            self._index.close()
            self._ledger.close()

    def callback_handler(self) -> CaptureHandler:
        """A LangChain callback handler that captures whole runs into this memory.

        Pass it as ``config={"callbacks": [memory.callback_handler()]}``.
        """
        from lag_integrations.langchain.callbacks import CaptureHandler

        return CaptureHandler(self)

    def __repr__(self) -> str:
        return f"KVLogMemory({str(self.path)!r}, namespace={self.namespace!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"The memory at {self.path} is closed; open it again.")

    def _notify(self) -> None:
        with self._start_lock:
            if self._worker is None and not self._closed:
                self._worker = threading.Thread(target=self._work, name="lag-memory", daemon=True)
                self._worker.start()
        self._wake.set()

    def _work(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._wake.clear()
            try:
                while not self._closed and self._derive_some():
                    pass
            except LAGError as error:
                logger.warning("Logs could not be embedded for now: %s", error)
            except Exception:
                logger.exception("The memory's worker failed; flush() tries again.")

    def _derive_some(self) -> bool:
        """Bring index and segments one small step nearer to the ledger; False if they are there."""
        with self._work_lock:
            if self._closed:
                return False
            waiting = self._ledger.not_indexed(self.namespace, limit=_BATCH)
            if waiting:
                vectors = self._embed([row.trace.search_text for row in waiting])
                ids = [row.id for row in waiting]
                self._index.add(ids, vectors, [row.trace.outcome for row in waiting])
                self._ledger.mark_indexed(ids)
                return True
            engine = self._engine
            if engine is None or engine.closed:
                return False
            missing = self._missing(engine, limit=1)
            for key, trace in self._ledger.get(self.namespace, missing).items():
                try:
                    self._encode(key, trace, engine)
                except Exception as error:  # one bad log must not hold up the others
                    self._ledger.mark_failed(key, f"{type(error).__name__}: {error}")
            return bool(missing)

    def _pending(self) -> int:
        """Steps of work: one for each log to embed, one for each to encode."""
        engine = self._engine
        unencoded = 0 if engine is None or engine.closed else len(self._missing(engine))
        return len(self._ledger.not_indexed(self.namespace)) + unencoded

    def _missing(self, engine: Engine, limit: int | None = None) -> list[str]:
        return self._ledger.without_segment(
            self.namespace, engine.fingerprint.id, self.selection.name, self.outcomes, limit
        )

    def _segment(self, key: str, trace: Trace, engine: Engine) -> Segment:
        model, selection = engine.fingerprint.id, self.selection.name
        file = self._ledger.segment_file(key, model, selection)
        if file is not None:
            try:
                return read_segment(self.path / file, fingerprint=model)
            except SegmentCorruptedError as error:
                logger.warning("%s It is encoded again from its trace.", error)
                self._ledger.remove_segment(key, model, selection)
        return self._encode(key, trace, engine)

    def _encode(self, key: str, trace: Trace, engine: Engine) -> Segment:
        model, selection = engine.fingerprint.id, self.selection.name
        segment = engine.encode(trace, self.selection)
        file = f"segments/{model[:16]}/{selection}/{key}.safetensors"
        size = write_segment(segment, self.path / file)
        self._ledger.add_segment(key, model, selection, file=file, tokens=len(segment), size=size)
        return segment

    def _embed_query(self, query: str) -> Vectors:
        if not self._embedder_checked:
            self._check_embedder()
        return self._embedder.embed_query(query)

    def _embed(self, texts: list[str]) -> Vectors:
        if not self._embedder_checked:
            self._check_embedder()
        return self._embedder.embed(texts)

    def _check_embedder(self) -> None:
        """The store remembers how its embedder embeds one known sentence."""
        vector = self._embedder.embed([_PROBE_TEXT])[0]
        mine = {"name": self._embedder.name, "vector": [round(float(x), 5) for x in vector]}
        recorded = json.loads(self._ledger.setting("embedder", json.dumps(mine)))
        theirs = np.asarray(recorded["vector"], dtype=np.float32)
        if theirs.shape != vector.shape or float(theirs @ vector) < 0.999:
            raise EmbedderMismatchError(
                f"The store at {self.path} was built with the embedder {recorded['name']!r} "
                f"({len(theirs)} dimensions), not with {self._embedder.name!r} ({len(vector)}). "
                "Open it with that embedder, or add its traces to a new folder."
            )
        self._embedder_checked = True


def _default_embedder() -> str | Path:
    try:
        return packaged.embedder()
    except PackagedModelError:
        return DEFAULT_EMBEDDER

"""Brings what is derived (embeddings, segments, index) into step with the ledger."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from lag_integrations.engine.encoding import Encodable
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import (
    BusyError,
    EmbedderMismatchError,
    LAGError,
    LogNotFoundError,
    StoreError,
)
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.store.budget import Budget
from lag_integrations.store.embedder import Embedder, Vectors
from lag_integrations.store.embeddings import EMBED, Entry
from lag_integrations.store.locks import patiently
from lag_integrations.store.matches import Query
from lag_integrations.store.relevance.measure import relevance_of
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.segments import encode_task
from lag_integrations.store.store import LogStore
from lag_integrations.store.store_metadata import EMBEDDER, generation_of
from lag_integrations.store.vector_search import MERGE_AT
from lag_integrations.traces.search_keys import search_keys
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

_EMBED_AT_ONCE = 64
_LATE = 120.0
"""Seconds that a log may be captured before it is seen: other clocks, long transactions."""
_LOOK_AHEAD = 256
_ENCODE_AT_ONCE, _TOKENS_AT_ONCE = 32, 1024
"""Logs, or tokens if batches are smaller, of which those of like length are read together."""
_SLOTS = 256
"""Encoding is shared out between processes by locks on parts of the logs."""
_ENFORCE_EVERY = 64
_ENFORCE_SECONDS = 10.0
_OVERSHOOT = 0.004
"""Steps, seconds, or part of the byte budget written, after which it is looked at again."""
_SWEEP_SECONDS = 3_600.0
"""Seconds between two looks for files that a crash left behind."""
_PATIENCE = 5.0
"""Most seconds that encoding in the background waits for answers in progress."""
_TWICE_AFTER, _ALL_TWICE_AFTER = 10.0, 60.0
"""Seconds after which one log, or all, are embedded or encoded although others seem to be at it:
they may be stopped. Work that is done twice is done right."""
_INDEX_BUSY = 30.0
"""Seconds for which the worker leaves an index alone that was in use for long."""
_PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


class Indexer:
    """Does the derived work of one namespace, a small step at a time.

    Several processes may do so for one store: locks keep them from doing work twice, and what a
    crash interrupted is simply still to do.

    Args:
        store: The store.
        embedder: Makes the embeddings.
        selection: Which tokens of a trace become its segment; what the model's calibration says by
            default.
        codec: How segments are stored.
        budget: What the namespace may grow to.
        record_uses: Records which logs were recalled; called before any are evicted.
    """

    def __init__(
        self,
        store: LogStore,
        embedder: Embedder,
        *,
        selection: Selection | None,
        codec: str,
        budget: Budget,
        record_uses: Callable[[], None],
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._selection = selection
        self._codec = codec
        self._budget = budget
        self._record_uses = record_uses
        self._generation = ""  # of the embedder, once it was compared with the store's
        self._dimension = 0
        self._relevance = Relevance(0.0, 1.0, 0.0)  # until the embedder is known
        self._todo: deque[str] = deque()
        self._todo_for: SegmentKey | None = None
        self._done_until = 0.0  # logs captured before have their segments
        self._steps = self._written = 0
        self._enforced_at = self._swept_at = float("-inf")
        self._index_from = 0.0
        self._others_since: float | None = None  # others encode all that is left
        self._not_waited_for: dict[str, float] = {}  # locks waited for in vain, and until when
        self._lock = threading.RLock()

    def key(self, log_id: str, engine: Engine) -> SegmentKey:
        """The key of a log's segment for a model."""
        selection = self._selection or engine.selection
        return SegmentKey(log_id, engine.fingerprint.id, selection.name, self._codec)

    def run_once(
        self, engine: Engine | None, outcomes: Sequence[Outcome], *, thorough: bool = False
    ) -> bool:
        """Do a little of what is to do; False if there is nothing that others are not doing.

        Args:
            engine: The model that encodes; None leaves that undone.
            outcomes: Logs with these outcomes are encoded.
            thorough: Look for old logs without a segment, too, not only for new ones.

        Raises:
            BusyError: Others held something for long, and there is nothing else to do.
            LAGError: Something does not work. The rest was done all the same.
        """
        stages: list[Callable[[], bool]] = [
            self._enforce_if_due,
            partial(self._on_index, self._store.sweep, thorough),
            partial(self._embed_some, wait=thorough),
            partial(self._on_index, partial(self._store.vectors.merge, MERGE_AT), thorough),
        ]
        if engine is not None:
            stages.append(partial(self._encode_some, engine, outcomes, thorough))
        failure: Exception | None = None
        with self._lock:
            for stage in stages:
                try:
                    if stage():
                        return True
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return False

    def _on_index(self, stage: Callable[[], bool], thorough: bool) -> bool:
        """Do a stage that needs the index; not soon again if that was in use for long."""
        if not thorough and time.monotonic() < self._index_from:
            return False
        try:
            return stage()
        except BusyError:
            self._index_from = time.monotonic() + _INDEX_BUSY
            raise

    def embed_some(self) -> bool:
        """Embed some logs; False if others are at all that are left, or none is.

        Raises:
            StoreError: The store or the embedder fails, or the embedder is not the store's.
        """
        with self._lock:
            return self._embed_some(wait=True)

    def rescan(self) -> None:
        """An old log may have lost its segment."""
        self._done_until = 0.0

    def maintain(self, *, thorough: bool = False) -> None:
        """What is to do now and then: keep the budget, let go of what others deleted.

        Args:
            thorough: Keep the budget now, not only if it was not looked at lately; and wait for
                others who use the index.

        Raises:
            BusyError: Others held something for long.
            StoreError: The store fails.
        """
        with self._lock:
            if thorough or time.monotonic() - self._enforced_at > _ENFORCE_SECONDS:
                self._enforce()
            if thorough:
                self._store.retry_removals()
            else:
                self._store.unstick()
                while self._on_index(self._store.sweep, thorough):
                    pass
            if time.monotonic() - self._swept_at > _SWEEP_SECONDS:
                self._store.remove_orphans()
                self._swept_at = time.monotonic()
            self._store.segment_cache.keep_only(self._store.segments.live_files)

    def _enforce(self) -> None:
        self._steps = self._written = 0
        self._enforced_at = time.monotonic()
        if self._budget == Budget():
            return
        self._record_uses()  # what was recalled a moment ago shall not go
        pruned = self._store.evictor.enforce(self._budget)
        if pruned.logs or pruned.segments:
            logger.info("Evicted %d logs, %d segments.", pruned.logs, pruned.segments)

    def _enforce_if_due(self) -> bool:
        """While there is much to do, the budget is kept meanwhile, too; never a step of its own."""
        self._steps += 1
        allowed = self._budget.max_bytes
        if self._steps >= _ENFORCE_EVERY or (allowed and self._written > allowed * _OVERSHOOT):
            self._enforce()
        return False

    def pending(self, engine: Engine | None, outcomes: Sequence[Outcome]) -> int:
        """Steps that are left: one for each log to embed, one for each to encode."""
        missing = 0
        if engine is not None:
            missing = self._store.segments.count_missing(self.key("", engine), outcomes)
        return self._store.embeddings.count_missing() + missing

    def encode(self, log_id: str, trace: Trace, engine: Engine) -> Segment:
        """Encode a trace, and store the segment.

        Raises:
            LAGError: The trace cannot be encoded by this model, or not be stored.
        """
        (segment,) = engine.encode_all([self._as_read(trace, engine)])
        return self._save(log_id, segment, engine)

    def _as_read(self, trace: Trace, engine: Engine) -> Encodable:
        return engine.encodable(trace, self._selection, cache_salt=self._store.cache_salt)

    def _save(self, log_id: str, segment: Segment, engine: Engine) -> Segment:
        try:
            segment, size = self._store.save(self.key(log_id, engine), segment, engine.staged)
        except OSError as error:
            raise StoreError(
                f"A segment cannot be written to {self._store.segment_files.url} ({error}). The "
                "trace is safe; the segment is made again when there is room."
            ) from error
        self._written += size
        return segment

    def segment(self, log_id: str, trace: Trace, engine: Engine) -> Segment:
        """The segment of a log: encoded now, or by whoever is at it already."""
        with self._held_or_not(_slot(log_id)):
            key = self.key(log_id, engine)
            files = self._store.segments.files(key, [log_id])
            if log_id not in files:
                raise LogNotFoundError(f"There is no log {log_id} in {self._store.namespace} now.")
            return self.load(log_id, trace, files[log_id], engine) or self.encode(
                log_id, trace, engine
            )

    def load(self, log_id: str, trace: Trace, file: str | None, engine: Engine) -> Segment | None:
        """The stored segment of a log, if there is one, and it is what its trace says.

        Raises:
            LAGError: The trace cannot be read by this model.
        """
        if file is None:
            return None

        def checked(segment: Segment) -> Segment:
            engine.check(segment, self._as_read(trace, engine))
            return engine.staged(segment)

        return self._store.load(self.key(log_id, engine), file, checked)

    @contextmanager
    def _held_or_not(self, name: str) -> Iterator[None]:
        """Hold a lock, or go on without it after a while."""
        again = time.monotonic() >= self._not_waited_for.get(name, 0.0)
        with ExitStack() as stack:
            try:
                timeout = _TWICE_AFTER if again else 0.0
                stack.enter_context(self._store.locks.hold(name, timeout=timeout))
            except BusyError:
                if again:
                    self._not_waited_for[name] = time.monotonic() + _ALL_TWICE_AFTER
            yield

    def embed_query(self, text: str) -> Query:
        """Embed a text that logs are searched by.

        Raises:
            EmbedderMismatchError: The store was built with another embedder.
        """
        self._check_embedder()
        vector = self._embedder.embed_query(text)
        if vector.shape != (self._dimension,):
            raise StoreError(
                f"The embedder {self._embedder.name!r} gave a vector of shape {vector.shape} for "
                f"the query; {self._dimension} dimensions are expected."
            )
        return Query(text, vector)

    @property
    def relevance(self) -> Relevance:
        """What similarities mean with this store's embedder."""
        self._check_embedder()
        return self._relevance

    def adopt_embedder(self) -> None:
        """Take this embedder for the store's from now on: every namespace is embedded again."""
        with self._lock:
            self._embedder.forget_queries()
            self._store.embeddings.adopt(json.dumps(self._describe_embedder()))
            patiently(self._store.index.drop_all)
            self._generation = ""
            self._check_embedder()

    def _embed_some(self, *, wait: bool) -> bool:
        if not self._store.embeddings.count_missing(limit=1):
            return False
        self._check_embedder()
        name = f"embed-{self._store.namespace}"
        lock: AbstractContextManager[set[str] | None] = (
            self._held_or_not(name) if wait else self._store.locks.hold_free([name])
        )
        with lock as held:
            if held is not None and not held:
                return False  # another process is at it
            waiting = self._store.embeddings.missing(limit=_EMBED_AT_ONCE)
            if waiting:
                self._embed(waiting)
        return bool(waiting)

    def _embed(self, waiting: Sequence[tuple[str, Trace]]) -> None:
        """Embed logs; one by one if it does not work for all, so that a bad one is found."""
        try:
            self._embed_together(waiting)
            return
        except EmbedderMismatchError:
            raise
        except Exception:
            self._embedder.embed([_PROBE_TEXT])  # if this fails, too, it is not the logs
        for log_id, trace in waiting:
            try:
                self._embed_together([(log_id, trace)])
            except EmbedderMismatchError:
                raise
            except Exception as error:
                logger.debug("Log %s cannot be embedded.", log_id, exc_info=True)
                # The name only: others' messages may repeat the text.
                reason = str(error) if isinstance(error, LAGError) else type(error).__name__
                self._store.failures.add(log_id, EMBED, reason)

    def _embed_together(self, logs: Sequence[tuple[str, Trace]]) -> None:
        """Embed the search keys of logs and record them.

        A key without a usable embedding is left out; a log fails if none of its keys has one.
        """
        keys = {
            (log_id, number): key.text
            for log_id, trace in logs
            for number, key in enumerate(search_keys(trace))
        }
        vectors = self._embedder.embed(list(keys.values()))
        if vectors.shape != (len(keys), self._dimension):
            raise StoreError(
                f"The embedder {self._embedder.name!r} gave vectors of shape {vectors.shape} for "
                f"{len(keys)} texts; {self._dimension} dimensions are expected."
            )
        good: list[bool] = (np.linalg.norm(vectors, axis=1) > 0.5).tolist()  # not zero, not NaN
        entries = [entry for entry, fine in zip(keys, good, strict=True) if fine]
        self._store.lexical.add(_whole(keys))
        self._store.embeddings.add(entries, vectors[good], self._generation)
        for log_id in {log_id for log_id, _ in logs} - {log_id for log_id, _ in entries}:
            self._store.failures.add(log_id, EMBED, "The embedding is zero or not finite.")

    def _encode_some(self, engine: Engine, outcomes: Sequence[Outcome], thorough: bool) -> bool:
        """Encode some logs that nobody else is encoding."""
        kind = self.key("", engine)
        if self._todo_for != kind:
            self._todo.clear()
            self._todo_for, self._done_until = kind, 0.0
        if not self._todo:
            # A look at all logs takes a while when they are many; few of the old can be missing.
            begun, since = time.time(), 0.0 if thorough else self._done_until
            found = self._store.segments.missing(kind, outcomes, _LOOK_AHEAD, since=since)
            self._todo.extend(found)
            if not found:
                self._done_until = begun - _LATE
        if self._todo and not thorough:
            engine.wait_idle(_PATIENCE)  # an answer that is being written goes first
        ahead = [self._todo.popleft() for _ in range(min(_ENCODE_AT_ONCE, len(self._todo)))]
        chosen: dict[str, Encodable] = {}
        done, tokens = False, 0
        slots = {_slot(log_id) for log_id in ahead}
        with self._store.locks.hold_free(slots) as held:
            if thorough and self._others_are_stuck(slots, held):
                held = slots
            while ahead and tokens < max(_TOKENS_AT_ONCE, engine.batch_tokens):
                log_id = ahead.pop(0)
                if _slot(log_id) not in held:
                    continue  # another process is at it
                if self._store.segments.is_missing(self.key(log_id, engine), outcomes):
                    done = True
                    encodable = self._encodable(log_id, engine)
                    if encodable is not None:
                        chosen[log_id] = encodable
                        tokens += engine.unread(encodable)
            ids = list(chosen)
            try:
                for batch in engine.together(list(chosen.values())):
                    if len(chosen) < len(ids) and not thorough and not engine.idle:
                        break  # an answer has begun, and goes first
                    self._steps += len(batch)
                    alike = {ids[place]: chosen.pop(ids[place]) for place in batch}
                    self._encode_batch(alike, engine)
            finally:
                self._todo.extendleft(reversed([*chosen, *ahead]))
        return done

    def _others_are_stuck(self, slots: set[str], held: set[str]) -> bool:
        """Whether others have been at all that is left for so long that they may be stopped."""
        if held or not slots:
            self._others_since = None
            return False
        if self._others_since is None:
            self._others_since = time.monotonic()
        return time.monotonic() - self._others_since > _ALL_TWICE_AFTER

    def _encodable(self, log_id: str, engine: Engine) -> Encodable | None:
        """A log's trace as the model is to read it; None if that does not work."""
        trace = self._store.ledger.get([log_id]).get(log_id)
        try:
            if trace is None:
                raise StoreError("The stored trace is damaged.")
            return self._as_read(trace, engine)
        except Exception as error:  # one bad log must not hold up the others
            self._note_failure(log_id, engine, error)
            return None

    def _encode_batch(self, batch: Mapping[str, Encodable], engine: Engine) -> None:
        """Encode logs; one by one if it does not work for all, so that a bad one is found."""
        if not batch:
            return
        segments: list[Segment] = []
        try:
            segments = engine.encode_all(list(batch.values()))
        except Exception as error:
            if engine.closed:
                raise  # no log's fault
            if len(batch) == 1:
                self._note_failure(next(iter(batch)), engine, error)
                return
        if not segments:  # not within the handler, which holds on to what the failed pass used
            for log_id, encodable in batch.items():
                self._encode_batch({log_id: encodable}, engine)
            return
        for log_id, segment in zip(batch, segments, strict=True):
            try:
                self._save(log_id, segment, engine)
            except StoreError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # the store's fault, not the log's: it is tried again
                self._note_failure(log_id, engine, error)
            except Exception as error:
                self._note_failure(log_id, engine, error)

    def _note_failure(self, log_id: str, engine: Engine, error: Exception) -> None:
        logger.debug("Log %s cannot be encoded.", log_id, exc_info=error)
        reason = str(error) if isinstance(error, LAGError) else ""
        if not isinstance(error, StoreError):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        self._store.failures.add(log_id, encode_task(self.key(log_id, engine)), reason)

    def _describe_embedder(self) -> dict[str, Any]:
        vector = self._embedder.embed([_PROBE_TEXT])[0]
        if not np.linalg.norm(vector) > 0.5:
            raise StoreError(f"The embedder {self._embedder.name!r} gives no finite vectors.")
        return {
            "name": self._embedder.name,
            "dimension": len(vector),
            "generation": uuid4().hex,
            "vector": [round(float(x), 5) for x in vector],
        }

    def _check_embedder(self) -> None:
        """The store remembers how its embedder embeds one known sentence."""
        if self._generation and self._generation == self._store.metadata.generation():
            return
        mine = self._describe_embedder()
        recorded = json.loads(self._store.metadata.first_setting(EMBEDDER, json.dumps(mine)))
        ours, theirs = (np.asarray(one["vector"], dtype=np.float32) for one in (mine, recorded))
        if ours.shape != theirs.shape or not float(theirs @ ours) >= 0.999:
            raise EmbedderMismatchError(
                f"The store at {self._store.path} was built with the embedder "
                f"{recorded['name']!r} ({len(theirs)} dimensions), not with "
                f"{self._embedder.name!r} ({len(ours)}). Open it with that embedder, or call "
                "memory.reindex() (`kvlog reindex`) to embed every trace with this one."
            )
        self._dimension = len(ours)
        self._relevance = self._measured(generation_of(json.dumps(recorded)), ours)
        self._generation = generation_of(json.dumps(recorded))

    def _measured(self, generation: str, probe: Vectors) -> Relevance:
        """What the store's record says of its embedder, which is measured once a store."""
        key = f"relevance:{generation}"
        found = self._store.metadata.setting(key)
        if found is None:
            relevance = relevance_of(self._embedder, probe)
            found = self._store.metadata.first_setting(key, json.dumps(astuple(relevance)))
        return Relevance(*json.loads(found))


def _whole(keys: Mapping[Entry, str]) -> dict[str, str]:
    """All that logs are searched by, a text each."""
    texts: dict[str, list[str]] = {}
    for (log_id, _), text in keys.items():
        texts.setdefault(log_id, []).append(text)
    return {log_id: "\n".join(found) for log_id, found in texts.items()}


def _slot(log_id: str) -> str:
    """The lock that whoever encodes a log holds."""
    return f"encode-{int(log_id[:8], 16) % _SLOTS}"

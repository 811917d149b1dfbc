"""Segments of logs: loaded, or encoded where they are missing."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import LAGError, LogNotFoundError, StoreError
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.memory.patient_locks import ALL_TWICE_AFTER, PatientLocks
from lag_integrations.memory.results import RecalledLog
from lag_integrations.store.segment_table import encode_task
from lag_integrations.store.store import LogStore
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

_LATE = 120.0
"""Seconds that a log may be captured before it is seen: other clocks, long transactions."""
_LOOK_AHEAD = 256
_ENCODE_AT_ONCE, _TOKENS_AT_ONCE = 32, 1024
"""Logs, or tokens if batches are smaller, of which those of like length are read together."""
_SLOTS = 256
"""Encoding is shared out between processes by locks on parts of the logs."""
_PATIENCE = 5.0
"""Most seconds that encoding in the background waits for answers in progress."""


@dataclass
class _Progress:
    """What is left to encode for one model.

    Attributes:
        todo: Ids of logs without a segment.
        done_until: Logs captured before have their segments, in Unix seconds.
        others_since: Since when others encode all that is left, in monotonic seconds.
    """

    todo: deque[str] = field(default_factory=deque)
    done_until: float = 0.0
    others_since: float | None = None


class SegmentIndexer:
    """Loads and encodes the segments of one namespace's logs, for any number of models.

    Args:
        store: The store.
        selection: Which tokens of a trace become its segment; what the model's calibration says by
            default.
        codec: How segments are stored.
        locks: Keep other processes from encoding the same.
        on_demand: Whether only those are encoded in the background that were asked for.

    Attributes:
        namespace: The namespace.
        written: Bytes of segments written since somebody set it to 0.
    """

    def __init__(
        self,
        store: LogStore,
        selection: Selection | None,
        codec: str,
        locks: PatientLocks,
        *,
        on_demand: bool = False,
    ) -> None:
        self.namespace = store.namespace
        self.written = 0
        self._store = store
        self._selection = selection
        self._codec = codec
        self._locks = locks
        self._progress: dict[SegmentKey, _Progress] = {}
        self._on_demand = on_demand
        self._requested: dict[tuple[str, str], None] = {}  # of a log and a model, the first first
        self._requests_lock = threading.Lock()

    def key(self, log_id: str, engine: Engine) -> SegmentKey:
        """Return the key of a log's segment for a model."""
        selection = self.selection(engine)
        return SegmentKey(log_id, engine.fingerprint.id, selection.name, self._codec)

    def selection(self, engine: Engine) -> Selection:
        """Return which tokens of a trace become its segment for a model."""
        return self._selection or engine.selection

    def encodable(self, trace: Trace, engine: Engine) -> Encodable:
        """Render a trace as this model is to read it.

        Raises:
            LAGError: The trace cannot be encoded by this model.
        """
        return engine.encodable(trace, self._selection, cache_salt=self._store.cache_salt)

    def files(self, logs: Sequence[RecalledLog], engine: Engine) -> dict[str, str | None]:
        """Return the segment file of each log that exists; None if it has none for this model."""
        return self._store.segments.files(self.key("", engine), [log.id for log in logs])

    def load(
        self,
        log_id: str,
        file: str | None,
        engine: Engine,
        encodable: Callable[[], Encodable],
    ) -> Segment | None:
        """Load the stored segment of a log, if there is one, and it is what its trace says.

        Args:
            log_id: The log.
            file: The segment's file.
            engine: The model.
            encodable: Returns its trace as the model is to read it; asked if the file is read.

        Raises:
            LAGError: The trace cannot be read by this model.
        """
        if file is None:
            return None

        def checked(segment: Segment) -> Segment:
            engine.encoder.check(segment, encodable())
            return engine.encoder.stage(segment)

        return self._store.load(self.key(log_id, engine), file, checked)

    def load_or_encode(self, log_id: str, encodable: Encodable, engine: Engine) -> Segment:
        """Encode a log now, unless somebody else has meanwhile.

        Raises:
            LogNotFoundError: It was deleted.
            LAGError: The trace cannot be encoded by this model, or not be stored.
        """
        with self._locks.hold(_slot(log_id)):
            files = self._store.segments.files(self.key(log_id, engine), [log_id])
            if log_id not in files:
                raise LogNotFoundError(f"There is no log {log_id} in {self.namespace} now.")
            stored = self.load(log_id, files[log_id], engine, lambda: encodable)
            if stored is not None:
                return stored
            (segment,) = engine.encoder.encode_batch([encodable])
            return self._save(log_id, segment, engine)

    def request(self, log_id: str, engine: Engine) -> None:
        """Have the worker encode a log that was evicted, or that is encoded on demand alone."""
        if self._store.read_only:
            return
        if not self._on_demand:
            if self._store.segments.forget(self.key(log_id, engine), None):
                self.rescan()
            return
        with self._requests_lock:
            if len(self._requested) < _LOOK_AHEAD:
                self._requested[log_id, engine.fingerprint.id] = None

    def encode_requested(self, engine: Engine) -> bool:
        """Encode one log that was asked for; return False if there is none.

        Raises:
            BusyError: Another process is at it for long.
            StoreError: The segment cannot be written.
        """
        with self._requests_lock:
            mine = (log for log, model in self._requested if model == engine.fingerprint.id)
            log_id = next(mine, None)
            if log_id is None:
                return False
            del self._requested[log_id, engine.fingerprint.id]
        with self._locks.hold(_slot(log_id)):
            files = self._store.segments.files(self.key(log_id, engine), [log_id])
            if files.get(log_id, "deleted") is None:
                encodable = self._encodable_of(log_id, engine)
                if encodable is not None:
                    self._encode_batch({log_id: encodable}, engine, _PATIENCE)
        return True

    def rescan(self) -> None:
        """Look at all logs again: an old one may have lost its segment."""
        for progress in self._progress.values():
            progress.done_until = 0.0

    def count_missing(self, engine: Engine, outcomes: Sequence[Outcome]) -> int:
        """Return the number of logs that are still to be encoded for a model."""
        return self._store.segments.count_missing(self.key("", engine), outcomes)

    def encode_some(self, engine: Engine, outcomes: Sequence[Outcome], full_scan: bool) -> int:
        """Encode some logs that nobody else is encoding.

        Args:
            engine: The model.
            outcomes: Logs with these outcomes.
            full_scan: Look for old logs without a segment, too, and do not wait for answers.

        Returns:
            How many logs were looked after; 0 if there is nothing that others are not doing.
        """
        progress = self._look_ahead(engine, outcomes, full_scan)
        todo = progress.todo
        ahead = [todo.popleft() for _ in range(min(_ENCODE_AT_ONCE, len(todo)))]
        chosen: dict[str, Encodable] = {}
        done = tokens = 0
        slots = {_slot(log_id) for log_id in ahead}
        with self._store.locks.try_hold(slots) as held:
            if full_scan and _others_are_stuck(progress, slots, held):
                held = slots
            while ahead and tokens < max(_TOKENS_AT_ONCE, engine.encoder.batch_tokens):
                log_id = ahead.pop(0)
                if _slot(log_id) not in held:
                    continue  # another process is at it
                if self._store.segments.is_missing(self.key(log_id, engine), outcomes):
                    done += 1
                    encodable = self._encodable_of(log_id, engine)
                    if encodable is not None:
                        chosen[log_id] = encodable
                        tokens += len(encodable)
            ids, encodables = list(chosen), list(chosen.values())
            try:
                patience = 0.0 if full_scan else _PATIENCE  # answers go first
                for batch in engine.encoder.plan_batches(encodables):
                    self._encode_batch(
                        {ids[n]: chosen.pop(ids[n]) for n in batch}, engine, patience
                    )
            finally:
                todo.extendleft(reversed([*chosen, *ahead]))
        return done

    def _look_ahead(
        self, engine: Engine, outcomes: Sequence[Outcome], full_scan: bool
    ) -> _Progress:
        kind = self.key("", engine)
        progress = self._progress.setdefault(kind, _Progress())
        if not progress.todo:
            # A look at all logs takes a while when they are many; few of the old can be missing.
            begun, since = time.time(), 0.0 if full_scan else progress.done_until
            found = self._store.segments.missing(kind, outcomes, _LOOK_AHEAD, since=since)
            progress.todo.extend(found)
            if not found:
                progress.done_until = begun - _LATE
        return progress

    def _encodable_of(self, log_id: str, engine: Engine) -> Encodable | None:
        """Return a log as the model is to read it; None if that does not work."""
        trace = self._store.ledger.get([log_id]).get(log_id)
        try:
            if trace is None:
                raise StoreError("The stored trace is damaged.")
            return self.encodable(trace, engine)
        except Exception as error:  # one bad log must not hold up the others
            self._record_failure(log_id, engine, error)
            return None

    def _encode_batch(
        self, batch: Mapping[str, Encodable], engine: Engine, patience: float
    ) -> None:
        """Encode logs; one by one if it does not work for all, so that a bad one is found."""
        segments: list[Segment] = []
        try:
            segments = engine.encoder.encode_batch(list(batch.values()), patience=patience)
        except Exception as error:
            if engine.closed:
                raise  # no log's fault
            if len(batch) == 1:
                self._record_failure(next(iter(batch)), engine, error)
                return
        if not segments:  # not within the handler, which holds on to what the failed pass used
            for log_id, encodable in batch.items():
                self._encode_batch({log_id: encodable}, engine, patience)
            return
        for log_id, segment in zip(batch, segments, strict=True):
            try:
                self._save(log_id, segment, engine)
            except StoreError as error:
                if isinstance(error.__cause__, OSError):
                    raise  # the store's fault, not the log's: it is tried again
                self._record_failure(log_id, engine, error)
            except Exception as error:
                self._record_failure(log_id, engine, error)

    def _save(self, log_id: str, segment: Segment, engine: Engine) -> Segment:
        try:
            key = self.key(log_id, engine)
            segment, size = self._store.save(key, segment, engine.encoder.stage)
        except OSError as error:
            raise StoreError(
                f"A segment cannot be written to {self._store.segment_files.url} ({error}). The "
                "trace is safe; the segment is made again when there is room."
            ) from error
        self.written += size
        return segment

    def _record_failure(self, log_id: str, engine: Engine, error: Exception) -> None:
        logger.debug("Log %s cannot be encoded.", log_id, exc_info=error)
        reason = str(error) if isinstance(error, LAGError) else ""
        if not isinstance(error, StoreError):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        self._store.failures.add(log_id, encode_task(self.key(log_id, engine)), reason)


def _others_are_stuck(progress: _Progress, slots: set[str], held: set[str]) -> bool:
    """Return whether others have been at all that is left for so long that they may be stopped."""
    if held or not slots:
        progress.others_since = None
        return False
    if progress.others_since is None:
        progress.others_since = time.monotonic()
    return time.monotonic() - progress.others_since > ALL_TWICE_AFTER


def _slot(log_id: str) -> str:
    """Return the name of the lock that whoever encodes a log holds."""
    return f"encode-{int(log_id[:8], 16) % _SLOTS}"

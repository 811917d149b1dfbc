"""One namespace as one portable file, to carry elsewhere or to keep as a backup.

It is a zip file. Nothing in it is ever used as a path:

- ``manifest.json``: ``format`` is ``lag-archive``, ``version`` is 1; ``namespace``, ``created``
  (ISO 8601), ``logs`` (their number), ``segments`` (whether they are in);
- ``logs.jsonl``: one log a line, ``{"trace": {…}, "captured_at": …, "times_seen": …, …}``;
- ``segments.jsonl``: one segment a line, ``{"file": "segments/…", "log_id": …, "fingerprint": …,
  "selection": …, "codec": …}``, and these files. Log ids are those of the archive's namespace.

Embeddings are not in: they are derived from the traces, with whatever embedder the store has.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from lag_integrations.errors import (
    EncodingError,
    FingerprintMismatchError,
    LAGError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.segment import SegmentKey
from lag_integrations.kv.segment_file import load_segment
from lag_integrations.store.ledger import COUNTERS, checked_namespace, log_id
from lag_integrations.store.schema import logs
from lag_integrations.store.store import LogStore
from lag_integrations.trace import Trace

logger = logging.getLogger(__name__)

VERSION = 1

_MANIFEST, _LOGS, _SEGMENTS = "manifest.json", "logs.jsonl", "segments.jsonl"
_PAGE = 500
_IN_MEMORY = 4 * 2**20
_FAST = 1
"""Compression of segments: they hardly shrink."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SELECTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CODEC = re.compile(r"[a-z0-9+]{1,16}")

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Archived:
    """What an export or import did.

    Attributes:
        logs: Logs written, or read.
        new: Of those read, the logs that were not there before; 0 for an export.
        segments: Segments written, or stored.
        skipped: What is damaged and was left out: logs and segments of an export, segments of an
            import. Segments are made again from their traces.
    """

    logs: int
    new: int
    segments: int
    skipped: int


class _Manifest(BaseModel):
    format: Literal["lag-archive"]
    version: Literal[1]
    namespace: str
    created: str
    logs: int
    segments: bool


_Count = Field(ge=0, le=2**31 - 1)


class _Log(BaseModel):
    trace: Trace
    captured_at: float = Field(ge=0, allow_inf_nan=False)
    times_seen: int = _Count
    times_recalled: int = _Count
    times_helped: int = _Count
    times_harmed: int = _Count


class _SegmentLine(BaseModel):
    file: str
    log_id: str
    fingerprint: str
    selection: str
    codec: str

    @property
    def key(self) -> SegmentKey | None:
        """The key; None if it is not one that this package writes."""
        good = (
            _FINGERPRINT.fullmatch(self.fingerprint)
            and _SELECTION.fullmatch(self.selection)
            and _CODEC.fullmatch(self.codec)
        )
        if not good:
            return None
        return SegmentKey(self.log_id, self.fingerprint, self.selection, self.codec)


_Line = TypeVar("_Line", _Log, _SegmentLine)


def export_archive(
    store: LogStore,
    path: str | Path,
    *,
    segments: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Archived:
    """Write all logs of a store's namespace to one file: as a whole, or not at all.

    Args:
        store: The store, open.
        path: The file to write.
        segments: Put the segments in, too; they can be large.
        overwrite: Replace the file if it exists.
        progress: Called with the number of logs and segments written, and of all.

    Raises:
        StoreError: The file exists already or cannot be written, or the store fails.
    """
    target = Path(path)
    if target.is_dir() or (target.exists() and not overwrite):
        raise StoreError(f"{target} exists already; give another name, or overwrite=True.")
    try:
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                result = _Writer(store, file, segments, progress or _no_progress).write()
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"The archive {target} cannot be written: {error}") from error
    return result


def import_archive(store: LogStore, path: str | Path, progress: Progress | None = None) -> Archived:
    """Add an archive's logs to a store's namespace, which may be another than they come from.

    Logs that are there already stay: their counters are raised to the archive's, an outcome is
    taken where none is known, and a damaged trace is made whole. So importing twice, or again
    after an interruption, is fine. The store is not touched before all traces were checked.

    Args:
        store: The store, open.
        path: What `export_archive` wrote.
        progress: Called with the number of logs and segments read, and of all.

    Raises:
        StoreError: The file is not a whole archive, or of a newer version; or the store fails.
    """
    with _Reader(Path(path)) as reader:
        return reader.add_to(store, progress or _no_progress)


def check_archive(path: str | Path) -> None:
    """Refuse a file that is no archive, or not one for this version, by its manifest alone.

    Raises:
        StoreError: It is not.
    """
    _Reader(Path(path)).close()


class _Writer:
    """Writes one archive, a page of logs at a time."""

    def __init__(
        self, store: LogStore, file: IO[bytes], segments: bool, progress: Progress
    ) -> None:
        self._store = store
        self._file = file
        self._with_segments = segments
        self._progress = progress
        self._written: set[str] = set()
        self._logs = self._segments = self._skipped = 0

    def write(self) -> Archived:
        """Write everything."""
        store = self._store
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(_LOGS, "w", force_zip64=True) as lines:
                self._write_logs(lines)
            if self._with_segments:
                with tempfile.SpooledTemporaryFile(_IN_MEMORY) as keys:
                    self._write_segments(archive, keys)
                    keys.seek(0)
                    with archive.open(_SEGMENTS, "w", force_zip64=True) as lines:
                        while piece := keys.read(2**20):
                            lines.write(piece)
            manifest = _Manifest(
                format="lag-archive",
                version=1,
                namespace=store.namespace,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                logs=self._logs,
                segments=self._with_segments,
            )
            archive.writestr(_MANIFEST, manifest.model_dump_json(indent=1))
        return Archived(self._logs, 0, self._segments, self._skipped)

    def _write_logs(self, lines: IO[bytes]) -> None:
        ledger = self._store.ledger
        total = ledger.count()
        for page in _pages(ledger.ids()):
            found = ledger.info(page)
            # Left out by the ledger: what is damaged, and what was deleted since.
            lost = set(page) - {info.id for info in found}
            if lost and (damaged := ledger.count(logs.c.id.in_(lost))):
                self._skipped += damaged
                logger.warning("%d damaged traces were left out of the archive.", damaged)
            for info in sorted(found, key=lambda info: info.id):
                counters = {name: getattr(info, name) for name in COUNTERS}
                line = f'{{"trace":{info.trace.to_json()},{json.dumps(counters)[1:]}\n'
                lines.write(line.encode())
                if self._with_segments:
                    self._written.add(info.id)
            self._logs += len(found)
            self._progress(self._logs, max(total, self._logs))

    def _write_segments(self, archive: zipfile.ZipFile, keys: IO[bytes]) -> None:
        stored = [
            (key, file)
            for key, file, _ in self._store.segments.all_files()
            if key.log_id in self._written  # else a log of the last seconds
        ]
        for done, (key, file) in enumerate(stored, 1):
            try:
                data = self._store.blobs.get(file)
                load_segment(data, key)
            except (OSError, SegmentCorruptedError, FingerprintMismatchError) as error:
                logger.warning("The segment of log %s was left out. %s", key.log_id, error)
                self._skipped += 1
                continue
            line = _SegmentLine(
                file=f"segments/{self._segments:08}.safetensors",
                log_id=key.log_id,
                fingerprint=key.fingerprint,
                selection=key.selection,
                codec=key.codec,
            )
            archive.writestr(line.file, data, compresslevel=_FAST)
            keys.write(line.model_dump_json().encode() + b"\n")
            self._segments += 1
            self._progress(self._logs + done, self._logs + len(stored))


class _Reader:
    """Reads one archive. Whatever is wrong with it is a StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise StoreError(f"There is no archive {path}.") from None
        except _DAMAGE as error:
            raise self._not_whole(error) from error
        try:
            self._manifest = self._read_manifest()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._archive.close()

    def _read_manifest(self) -> _Manifest:
        try:
            if self._archive.getinfo(_MANIFEST).file_size > _IN_MEMORY:
                raise ValueError("too large")
            raw = self._archive.read(_MANIFEST)
            version = json.loads(raw)["version"]
            if isinstance(version, int) and version > VERSION:
                raise StoreError(
                    f"{self._path} was written by a newer version of lag_integrations (archive "
                    f"version {version}, known is {VERSION}). Upgrade lag_integrations."
                )
            manifest = _Manifest.model_validate_json(raw)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self._path} is not an archive of this package: it has no good {_MANIFEST}. "
                "Give a file that an export wrote."
            ) from error
        except _DAMAGE as error:
            raise self._not_whole(error) from error
        checked_namespace(manifest.namespace)
        return manifest

    def _not_whole(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._path} cannot be read as an archive: it is no zip file, cut short or damaged "
            f"({type(error).__name__}: {error}). Export it again, or take another copy."
        )

    def add_to(self, store: LogStore, progress: Progress) -> Archived:
        """Add everything to a store."""
        total = sum(1 for _ in self._logs())  # checks every line, and the checksum at the end
        if total != self._manifest.logs:
            raise StoreError(
                f"{self._path} is not whole: it should hold {self._manifest.logs} logs, but has "
                f"{total}. Export it again."
            )
        total += sum(1 for _ in self._segment_lines())
        done = new = stored = skipped = 0
        ids: dict[str, str] = {}
        for page in _pages(self._logs()):
            new += store.ledger.restore([_with_counters(log) for log in page])
            if self._manifest.segments:
                for log in page:
                    old = log_id(self._manifest.namespace, log.trace)
                    ids[old] = log_id(store.namespace, log.trace)
            done += len(page)
            progress(done, total)
        for number, line in enumerate(self._segment_lines(), done + 1):
            outcome = self._add_segment(store, line, ids.get(line.log_id))
            stored += outcome is True
            skipped += outcome is None
            progress(number, total)
        return Archived(done, new, stored, skipped)

    def _logs(self) -> Iterator[_Log]:
        return self._lines(_LOGS, _Log)

    def _segment_lines(self) -> Iterator[_SegmentLine]:
        if self._manifest.segments:
            yield from self._lines(_SEGMENTS, _SegmentLine)

    def _lines(self, name: str, model: type[_Line]) -> Iterator[_Line]:
        try:
            with self._archive.open(name) as file:
                for number, line in enumerate(file, 1):
                    yield self._line(name, number, line, model)
        except KeyError:
            raise StoreError(f"{self._path} is not whole: it has no {name}.") from None
        except _DAMAGE as error:
            raise self._not_whole(error) from error

    def _line(self, name: str, number: int, line: bytes, model: type[_Line]) -> _Line:
        try:
            return model.model_validate_json(line)
        except ValidationError as error:
            # Without the input, which is content of traces.
            reasons = "; ".join(item["msg"] for item in error.errors()[:3])
            raise StoreError(
                f"{self._path} is damaged, or was not written by this package: line {number} of "
                f"{name} cannot be understood ({reasons})."
            ) from None

    def _add_segment(self, store: LogStore, line: _SegmentLine, new_id: str | None) -> bool | None:
        """Store one segment: True if so, False if it is there already, None if it is no good."""
        key = line.key
        if new_id is None or key is None:
            logger.warning("A segment of no log in %s was left out.", self._path)
            return None
        new_key = SegmentKey(new_id, key.fingerprint, key.selection, key.codec)
        if store.segments.files(new_key, [new_id]).get(new_id) is not None:
            return False
        try:
            segment = load_segment(self._archive.read(line.file), key)
        except (*_DAMAGE, LAGError) as error:
            logger.warning("The segment of log %s was left out. %s", new_id, error)
            return None
        try:
            store.save(new_key, segment)
        except EncodingError as error:
            logger.warning("The segment of log %s was left out. %s", new_id, error)
            return None
        except OSError as error:
            raise StoreError(
                f"A segment cannot be written to {store.blobs.url} ({error}). What was imported "
                "so far is safe; import again when there is room."
            ) from error
        return True


# What reading a damaged, or hostile, zip file raises.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    KeyError,
    RuntimeError,  # encrypted; NotImplementedError: compressed in some other way
    ValueError,
)


def _with_counters(log: _Log) -> tuple[Trace, dict[str, Any]]:
    counters = {name: getattr(log, name) for name in COUNTERS}
    # Not in the future: it would never grow old.
    return log.trace, {**counters, "captured_at": min(log.captured_at, time.time())}


def _pages(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while page := list(islice(iterator, _PAGE)):
        yield page


def _no_progress(done: int, total: int) -> None:
    pass

"""Reading an archive, which anybody may have written."""

from __future__ import annotations

import hmac
import json
import logging
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError

from lag_integrations.errors import EncodingError, LAGError, StoreError
from lag_integrations.kv.segment import SegmentKey
from lag_integrations.store.archive.format import (
    LOG_BYTES,
    LOGS,
    MANIFEST,
    MANIFEST_BYTES,
    SEGMENT_BYTES,
    SEGMENT_LINE_BYTES,
    SEGMENTS,
    VERSION,
    ArchiveResult,
    LogLine,
    Manifest,
    Progress,
    SegmentLine,
    checked_key,
    no_progress,
    segment_file,
)
from lag_integrations.store.archive.members import Lines, Members
from lag_integrations.store.ledger import MAX_TRACE_BYTES
from lag_integrations.store.ledger_import import import_logs
from lag_integrations.store.log_id import log_id, validate_namespace
from lag_integrations.store.log_info import COUNTERS, ExportedLog
from lag_integrations.store.store import LogStore
from lag_integrations.traces.reserved_metadata import (
    LESSON,
    LESSON_OF,
    is_marked,
    lesson_sources,
)

logger = logging.getLogger(__name__)

_TOKEN = re.compile(rb'"[^"]*"|[,\[{]')
_MAX_TOKENS = 2**18
"""Most tokens of an untrusted line: a number takes up to a kilobyte until it is in the ledger."""

_Line = TypeVar("_Line", LogLine, SegmentLine)


def import_archive(
    store: LogStore,
    path: str | Path,
    progress: Progress | None = None,
    *,
    key: bytes | None = None,
    segments: bool = True,
) -> ArchiveResult:
    """Add an archive's logs to a store's namespace, which may be another than they come from.

    Logs that exist already stay; see `import_logs`. So importing twice, or again after an
    interruption, is fine. The store is not touched before all traces were checked.

    Args:
        store: The store, open.
        path: An archive that `export_archive` wrote.
        progress: Called with the number of logs and segments read, and of all.
        key: Secret that the archive must be signed with. By default, an archive that this store
            signed is trusted, and others are taken with care (see the package).
        segments: Whether to import the segments of a trusted archive; else they are encoded again.

    Raises:
        StoreError: The file is not a whole archive, or of a newer version, or not signed with the
            key that was given; or the store fails.
    """
    reader = _Reader(Path(path), key)
    try:
        return reader.add_to(store, segments, progress or no_progress)
    finally:
        reader.close()


def check_archive(path: str | Path, key: bytes | None = None) -> None:
    """Refuse a file whose manifest is not that of an archive for this version.

    Args:
        path: The file.
        key: Secret that it must be signed with, if any.

    Raises:
        StoreError: It is no such archive.
    """
    _Reader(Path(path), key).close()


class _Reader:
    """Reads one archive. Raises a StoreError for whatever is wrong with it."""

    def __init__(self, path: Path, key: bytes | None) -> None:
        self._path = path
        self._key = None if key is None else checked_key(key)
        self._members = Members(path)
        try:
            self._manifest = self._read_manifest()
            if self._key is not None and not self._is_signed_with(self._key):
                raise StoreError(
                    f"{path} was not signed with the key that you gave. Give the right key, or "
                    "none, to take it as an archive that anybody may have written."
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._members.close()

    def _read_manifest(self) -> Manifest:
        try:
            raw = self._members.read(MANIFEST, MANIFEST_BYTES)
            if len(raw) > MANIFEST_BYTES:
                raise ValueError("too large")
            version = json.loads(raw)["version"]
            if isinstance(version, int) and version > VERSION:
                raise StoreError(
                    f"{self._path} was written by a newer version of lag_integrations (archive "
                    f"version {version}, known is {VERSION}). Upgrade lag_integrations."
                )
            manifest = Manifest.model_validate_json(raw)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self._path} is not an archive of this package: it has no good {MANIFEST}. "
                "Give a file that an export wrote."
            ) from error
        validate_namespace(manifest.namespace)
        if manifest.version > 1:
            files = 1 + len(manifest.sha256) + manifest.segments
            if len(self._members) != files:
                raise StoreError(
                    f"{self._path} is not whole, or was changed: it should hold {files:,} files, "
                    f"but has {len(self._members):,}. Export it again."
                )
        return manifest

    def _is_signed_with(self, key: bytes) -> bool:
        if self._manifest.version == 1:
            return False
        given = ascii(self._manifest.signature)
        return hmac.compare_digest(given, ascii(self._manifest.signed_with(key)))

    def add_to(self, store: LogStore, with_segments: bool, progress: Progress) -> ArchiveResult:
        """Add everything to a store."""
        manifest = self._manifest
        self._trusted = self._is_signed_with(self._key or store.metadata.signing_key())
        logs = self._lines(LOGS, LOG_BYTES, manifest.logs)
        for _ in self._pages(logs, LogLine):  # all of it, before the store is touched
            pass
        segments = None
        if with_segments and self._trusted and manifest.segments:
            segments = self._lines(SEGMENTS, SEGMENT_LINE_BYTES, manifest.segments)
            for _ in self._pages(segments, SegmentLine):
                pass
        total = len(logs) + len(segments or ())
        done = new = 0
        ids: dict[str, str] = {}
        lessons: list[LogLine] = []  # after all that they were made of
        for page in self._pages(logs, LogLine):
            runs = [log for log in page if not is_marked(log.trace.metadata, LESSON)]
            lessons += [log for log in page if is_marked(log.trace.metadata, LESSON)]
            found = [self._believed(log) for log in runs]
            new += import_logs(store.database, store.ledger, found, trusted=self._trusted)
            if segments is not None or self._trusted:
                for log in runs:
                    ids[log_id(manifest.namespace, log.trace)] = log_id(store.namespace, log.trace)
            done += len(page)
            progress(done, total)
        new += self._add_lessons(store, lessons, ids)
        stored = skipped = number = 0
        for lines in self._pages(segments, SegmentLine) if segments is not None else ():
            for line in lines:
                outcome = self._add_segment(store, number, line, ids.get(line.log_id))
                stored += outcome is True
                skipped += outcome is None
                number += 1
                progress(done + number, total)
        return ArchiveResult(done, new, stored, skipped, self._trusted)

    def _add_lessons(self, store: LogStore, lessons: Sequence[LogLine], ids: dict[str, str]) -> int:
        """Add lessons whose sources are all here, and their ids; return how many are new.

        Those of an archive that nobody vouches for are left out: they can be made again.

        Args:
            store: The store.
            lessons: The lessons.
            ids: Ids of logs in this store, by those that they had in the other.
        """
        found = []
        for lesson in lessons if self._trusted else ():
            sources: list[JsonValue] = [
                ids.get(key, key) for key in lesson_sources(lesson.trace.metadata)
            ]
            metadata = {**lesson.trace.metadata, LESSON_OF: sources}
            trace = lesson.trace.model_copy(update={"metadata": metadata})
            ids[log_id(self._manifest.namespace, lesson.trace)] = log_id(store.namespace, trace)
            found.append(self._believed(lesson.model_copy(update={"trace": trace})))
        return import_logs(store.database, store.ledger, found, trusted=True)

    def _lines(self, name: str, limit: int, number: int) -> Lines:
        manifest = self._manifest
        expected = None if manifest.version == 1 else manifest.sha256.get(name, "")
        return Lines(self._members, name, limit, number, expected)

    def _pages(self, lines: Lines, model: type[_Line]) -> Iterator[list[_Line]]:
        number = 0
        for page in lines.pages():
            yield [
                self._line(lines.name, place, line, model)
                for place, line in enumerate(page, number + 1)
            ]
            number += len(page)

    def _line(self, name: str, number: int, line: bytes, model: type[_Line]) -> _Line:
        try:
            if not self._trusted and _has_more_tokens(line, _MAX_TOKENS):
                raise ValueError("it holds too many values")
            found = model.model_validate_json(line)
            if isinstance(found, LogLine) and len(found.trace.to_json().encode()) > MAX_TRACE_BYTES:
                raise ValueError(f"its trace has more than {MAX_TRACE_BYTES:,} bytes")
        except ValueError as error:
            reasons = str(error)
            if isinstance(error, ValidationError):  # without the input: content of traces
                reasons = "; ".join(item["msg"] for item in error.errors()[:3])
            raise StoreError(
                f"{self._path} is damaged, or was not written by this package: line {number} of "
                f"{name} cannot be understood ({reasons})."
            ) from None
        return found

    def _believed(self, log: LogLine) -> ExportedLog:
        """Return a log without what cannot be believed."""
        trace, counters = log.trace, {name: getattr(log, name) for name in COUNTERS}
        # Not in the future: it would never grow old, nor give way to what is put in its place.
        now = datetime.now(timezone.utc)
        counters["captured_at"] = min(log.captured_at, now.timestamp())
        changes: dict[str, Any] = {"started_at": min(trace.started_at, now)}
        if trace.ended_at is not None:
            changes["ended_at"] = min(trace.ended_at, now)
        if not self._trusted:  # the ledger believes no judgement and no counter either
            changes["helped_by"] = ()
        return ExportedLog(trace.model_copy(update=changes), counters, log.source)

    def _add_segment(
        self, store: LogStore, number: int, line: SegmentLine, new_id: str | None
    ) -> bool | None:
        """Store one segment: return True; False if it exists already, None if it is left out."""
        key = line.key
        if new_id is None or key is None:
            logger.warning("A segment of no log in %s was left out.", self._path)
            return None
        new_key = SegmentKey(new_id, key.fingerprint, key.selection, key.codec)
        if store.segments.files(new_key, [new_id]).get(new_id) is not None:
            return False
        from lag_integrations.kv.segment_file import load_segment  # torch, when it is needed

        try:
            segment = load_segment(self._segment_data(number, line), key, line.sha256)
        except LAGError as error:
            logger.warning("The segment of log %s was left out. %s", new_id, error)
            return None
        try:
            store.save(new_key, segment)
        except EncodingError as error:
            logger.warning("The segment of log %s was left out. %s", new_id, error)
            return None
        except OSError as error:
            raise StoreError(
                f"A segment cannot be written to {store.segment_files.url} ({error}). What was "
                "imported so far is safe; import again when there is room."
            ) from error
        return True

    def _segment_data(self, number: int, line: SegmentLine) -> bytes:
        name = segment_file(number)
        if line.bytes > SEGMENT_BYTES:
            raise StoreError(f"{name} has more than {SEGMENT_BYTES:,} bytes.")
        try:
            return self._members.read(name, line.bytes)
        except KeyError:
            raise StoreError(f"There is no {name} in {self._path}.") from None


def _has_more_tokens(line: bytes, most: int) -> bool:
    """Return whether JSON has more than so many strings, commas and opening brackets."""
    if len(line) <= most:
        return False
    plain = line.replace(rb"\\", b"").replace(rb"\"", b"")
    return next(islice(_TOKEN.finditer(plain), most, None), None) is not None

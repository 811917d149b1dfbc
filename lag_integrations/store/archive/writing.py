"""Writing an archive."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from lag_integrations.errors import FingerprintMismatchError, SegmentCorruptedError, StoreError
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.store.archive.format import (
    LOGS,
    MANIFEST,
    MAX_SEGMENTS,
    SEGMENTS,
    VERSION,
    ArchiveResult,
    Manifest,
    Progress,
    SegmentLine,
    checked_key,
    no_progress,
    segment_file,
)
from lag_integrations.store.log_info import COUNTERS
from lag_integrations.store.schema import logs
from lag_integrations.store.store import LogStore

logger = logging.getLogger(__name__)

_IN_MEMORY = 4 * 2**20
_FAST = 1
"""Compression of segments: they hardly shrink."""


def export_archive(
    store: LogStore,
    path: str | Path,
    *,
    segments: bool = False,
    overwrite: bool = False,
    key: bytes | None = None,
    progress: Progress | None = None,
) -> ArchiveResult:
    """Write all logs of a store's namespace to one file, as a whole or not at all.

    Args:
        store: The store, open.
        path: The file to write.
        segments: Whether to write the segments, which can be large, too.
        overwrite: Replace the file if it exists.
        key: Secret of at least 32 bytes to sign it with, for a store that knows it; by default the
            store's own.
        progress: Called with the number of logs and segments written, and of all.

    Raises:
        StoreError: The key is too short, the file exists already or cannot be written, or the
            store fails.
    """
    target = Path(path)
    key = store.metadata.signing_key() if key is None else checked_key(key)
    if target.is_dir() or (target.exists() and not overwrite):
        raise StoreError(
            f"{target} exists already; give another name, or overwrite=True (`kvlog export "
            "--overwrite`)."
        )
    try:
        descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                result = _Writer(store, file, segments, key, progress or no_progress).write()
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, target)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"The archive {target} cannot be written: {error}") from error
    return result


class _Writer:
    """Writes one archive, a page of logs at a time."""

    def __init__(
        self, store: LogStore, file: IO[bytes], segments: bool, key: bytes, progress: Progress
    ) -> None:
        self._store = store
        self._file = file
        self._with_segments = segments
        self._key = key
        self._progress = progress
        self._written: set[str] = set()
        self._sha256: dict[str, str] = {}
        self._logs = self._segments = self._skipped = 0

    def write(self) -> ArchiveResult:
        """Write everything."""
        with zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(LOGS, "w", force_zip64=True) as lines:
                self._write_logs(lines)
            if self._with_segments:
                with tempfile.SpooledTemporaryFile(_IN_MEMORY) as keys:
                    self._write_segments(archive, keys)
                    keys.seek(0)
                    with archive.open(SEGMENTS, "w", force_zip64=True) as lines:
                        while piece := keys.read(2**20):
                            lines.write(piece)
            archive.writestr(MANIFEST, self._manifest().model_dump_json(indent=1))
        return ArchiveResult(self._logs, 0, self._segments, self._skipped, trusted=True)

    def _manifest(self) -> Manifest:
        manifest = Manifest(
            format="lag-archive",
            version=VERSION,
            namespace=self._store.namespace,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            logs=self._logs,
            segments=self._segments,
            sha256=self._sha256,
        )
        return manifest.model_copy(update={"signature": manifest.signed_with(self._key)})

    def _write_logs(self, lines: IO[bytes]) -> None:
        ledger = self._store.ledger
        total = ledger.count()
        digest = hashlib.sha256()
        for page in ledger.pages(list(ledger.ids())):
            found = ledger.info(page)
            # Left out by the ledger: what is damaged, and what was deleted since.
            lost = set(page) - {info.id for info in found}
            if lost and (damaged := ledger.count(logs.c.id.in_(lost))):
                self._skipped += damaged
                logger.warning("%d damaged traces were left out of the archive.", damaged)
            for info in sorted(found, key=lambda info: info.id):
                rest = {name: getattr(info, name) for name in (*COUNTERS, "source")}
                line = f'{{"trace":{info.trace.to_json()},{json.dumps(rest)[1:]}\n'.encode()
                digest.update(line)
                lines.write(line)
                if self._with_segments:
                    self._written.add(info.id)
            self._logs += len(found)
            self._progress(self._logs, max(total, self._logs))
        self._sha256[LOGS] = digest.hexdigest()

    def _write_segments(self, archive: zipfile.ZipFile, keys: IO[bytes]) -> None:
        stored = [
            (key, file)
            for key, file, _ in self._store.segments.all_files()
            if key.log_id in self._written  # else a log of the last seconds
        ]
        if len(stored) > MAX_SEGMENTS:
            logger.warning(
                "An archive holds %s segments at most; the other logs of %s are encoded again "
                "from their traces where it is imported.",
                MAX_SEGMENTS,
                len(stored),
            )
            stored = stored[:MAX_SEGMENTS]
        digest = hashlib.sha256()
        for done, (key, file) in enumerate(stored, 1):
            try:
                _, data = self._store.read(key, file)
            except (
                OSError,
                StoreError,  # a package that its codec needs is not installed
                SegmentCorruptedError,
                FingerprintMismatchError,
            ) as error:
                logger.warning("The segment of log %s was left out. %s", key.log_id, error)
                self._skipped += 1
                continue
            line = SegmentLine(
                log_id=key.log_id,
                fingerprint=key.fingerprint,
                selection=key.selection,
                codec=key.codec,
                bytes=len(data),
                sha256=sha256_hex(data),
            )
            archive.writestr(segment_file(self._segments), data, compresslevel=_FAST)
            text = line.model_dump_json().encode() + b"\n"
            digest.update(text)
            keys.write(text)
            self._segments += 1
            self._progress(self._logs + done, self._logs + len(stored))
        self._sha256[SEGMENTS] = digest.hexdigest()

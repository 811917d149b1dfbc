"""Logs of given lengths, and the memory that their segments come from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.models import text_of
from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastTurn
from lag_integrations.kv.checks import check_segment
from lag_integrations.kv.mapped_file import sha256_hex
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.segment_files import SegmentFiles
from lag_integrations.traces.trace import Trace

_FILE = "segment"


def log_of(engine: Engine, tokens: int, seed: int | str) -> Encodable:
    """Return a run whose last turn, of about so many tokens, is kept."""
    question, answer = text_of(engine, 32, f"{seed} question"), text_of(engine, tokens, seed)
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return engine.encodable(Trace.from_messages(said), LastTurn())


@dataclass(frozen=True)
class StoredLog:
    """A log's segment in a file, read as a memory reads it.

    Attributes:
        engine: The model.
        log: The log.
        files: Where the file is.
        folder: The same, as a folder.
        key: What it is the segment of.
        sha256: Of the file.
        nbytes: Its size.
        segment: The segment as it was encoded: on the model's device.
    """

    engine: Engine
    log: Encodable
    files: SegmentFiles
    folder: Path
    key: SegmentKey
    sha256: str
    nbytes: int
    segment: Segment

    @classmethod
    def make(cls, engine: Engine, tokens: int, folder: Path) -> StoredLog:
        """Encode a log of so many tokens, and write its file."""
        log = log_of(engine, tokens, f"log {tokens}")
        (segment,) = engine.encode_all([log])
        key = SegmentKey("log", engine.fingerprint.id, "last_turn", "native")
        data = dump_segment(segment, key)
        files = SegmentFiles(str(folder))
        files.put(_FILE, data)
        return cls(engine, log, files, folder, key, sha256_hex(data), len(data), segment)

    def evict(self) -> None:
        """Have the system forget the file's content, where it can be told to."""
        if not hasattr(os, "posix_fadvise"):
            return
        descriptor = os.open(self.folder / _FILE, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

    def parts(self) -> dict[str, Callable[[], object]]:
        """Return the steps of `load`, each on its own, on what is in memory already."""
        data = self.files.get(_FILE, self.nbytes)
        loaded = load_segment(data, self.key, self.sha256)
        return {
            "SHA-256": lambda: sha256_hex(data),
            "comparison with the trace": lambda: self._check(loaded),
            "pinning": lambda: self.engine.encoder.stage(loaded),
        }

    def read(self) -> object:
        """Read the file from the disk, and nothing else."""
        self.evict()
        return self.files.get(_FILE, self.nbytes)

    def load(self) -> Segment:
        """Return the segment as a memory holds it: read, checked, and staged."""
        segment = load_segment(self.files.get(_FILE, self.nbytes), self.key, self.sha256)
        self._check(segment)
        return self.engine.encoder.stage(segment)

    def unstaged(self) -> Segment:
        """Return the segment in ordinary memory."""
        return self.segment.to(torch.device("cpu"))

    def _check(self, segment: Segment) -> None:
        token_ids = [self.log.token_ids[index] for index in self.log.keep]
        check_segment(segment, self.engine.positions, token_ids, self.log.background)

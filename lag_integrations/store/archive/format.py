"""The format of an archive: names, records, limits and signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lag_integrations.errors import StoreError
from lag_integrations.kv.segment import SegmentKey
from lag_integrations.store.ledger import MAX_TRACE_BYTES
from lag_integrations.traces.provenance import MessageSource
from lag_integrations.traces.trace import Trace

VERSION: Literal[2] = 2

MANIFEST, LOGS, SEGMENTS = "manifest.json", "logs.jsonl", "segments.jsonl"
MANIFEST_BYTES = 2**20
LOG_BYTES = MAX_TRACE_BYTES + 2**12
"""Most bytes of a line of logs: a trace and its counters."""
SEGMENT_LINE_BYTES = 2**11
SEGMENT_BYTES = 4 * 2**30
"""Most bytes of a segment: some 8,000 tokens of a model of 70 billion parameters have 2.6 GB."""
MAX_SEGMENTS = 250_000
"""Most segments of an archive; those of the other logs are encoded again from their traces."""
_KEY_BYTES = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SELECTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CODEC = re.compile(r"[a-z0-9+]{1,16}")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ArchiveResult:
    """What an export or import did.

    Attributes:
        logs: Number of logs written or read.
        new: Number of those read that did not exist before; 0 for an export.
        segments: Number of segments written or stored.
        skipped: Number of damaged or unreadable logs and segments that were left out. Segments are
            encoded again from their traces.
        trusted: Whether the archive's signature fits. If not, segments and some counters were left
            out (see the package).
    """

    logs: int
    new: int
    segments: int
    skipped: int
    trusted: bool


class Manifest(BaseModel):
    """The manifest. In version 1, ``segments`` tells whether the archive has any."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["lag-archive"]
    version: Literal[1, 2]
    namespace: str
    created: str
    logs: int = Field(ge=0)
    segments: int = Field(ge=0)
    sha256: dict[str, str] = {}
    signature: str = ""

    def signed_with(self, key: bytes) -> str:
        """Return the manifest's signature with a key."""
        signed = self.model_dump(exclude={"signature"})
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


_Count = Field(ge=0, le=10**9)
"""Less than a database's integers can hold, so that counting can go on."""


class LogLine(BaseModel):
    """A log, its counters, and its least trusted source (missing in earlier exports)."""

    trace: Trace
    captured_at: float = Field(ge=0, allow_inf_nan=False)
    times_seen: int = _Count
    times_recalled: int = _Count
    times_helped: int = _Count
    times_harmed: int = _Count
    source: MessageSource | None = None


class SegmentLine(BaseModel):
    """A segment and its file's hash."""

    log_id: str
    fingerprint: str
    selection: str
    codec: str
    bytes: int = Field(ge=0)
    sha256: str

    @property
    def key(self) -> SegmentKey | None:
        """The segment's key; None if it is not one that this package writes."""
        good = (
            _FINGERPRINT.fullmatch(self.fingerprint)
            and _SELECTION.fullmatch(self.selection)
            and _CODEC.fullmatch(self.codec)
        )
        if not good:
            return None
        return SegmentKey(self.log_id, self.fingerprint, self.selection, self.codec)


def segment_file(number: int) -> str:
    """Return the name of the file of a segment line, counted from 0."""
    return f"segments/{number:08}.safetensors"


def checked_key(key: object) -> bytes:
    """Return a signing key unchanged.

    Raises:
        StoreError: It does not have at least 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) < _KEY_BYTES:
        raise StoreError(
            f"A key for archives must be at least {_KEY_BYTES} secret random bytes; "
            f"`openssl rand -out FILE {_KEY_BYTES}` makes one."
        )
    return key


def no_progress(done: int, total: int) -> None:
    """Do nothing: the default of `Progress`."""

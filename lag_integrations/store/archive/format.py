"""What is in an archive, by name, and how large it may be."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

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
"""Of a line of logs: a trace and its counters."""
SEGMENT_LINE_BYTES = 2**11
SEGMENT_BYTES = 4 * 2**30
"""Of a segment: some 8,000 tokens of a model of 70 billion parameters have 2.6 GB."""
_PAGE = 500
_PAGE_BYTES = 16 * 2**20
_KEY_BYTES = 32
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SELECTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CODEC = re.compile(r"[a-z0-9+]{1,16}")

Progress = Callable[[int, int], None]
_T = TypeVar("_T")


@dataclass(frozen=True)
class ArchiveResult:
    """What an export or import did.

    Attributes:
        logs: Logs written, or read.
        new: Of those read, the logs that were not there before; 0 for an export.
        segments: Segments written, or stored.
        skipped: What is damaged or cannot be read, and was left out: logs and segments of an
            export, segments of an import. Segments are made again from their traces.
        trusted: Whether the archive's signature fits. Of one that is not trusted, segments and
            some counters were left out (see the package).
    """

    logs: int
    new: int
    segments: int
    skipped: int
    trusted: bool


class Manifest(BaseModel):
    """The manifest; in version 1, ``segments`` is whether they are in."""

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
        """Return the signature that it has if it was signed with a key."""
        signed = self.model_dump(exclude={"signature"})
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


_Count = Field(ge=0, le=10**9)
"""Less than a database's integers hold: counting goes on."""


class LogLine(BaseModel):
    """A log, its counters, and its least trusted source (earlier exports did not say it)."""

    trace: Trace
    captured_at: float = Field(ge=0, allow_inf_nan=False)
    times_seen: int = _Count
    times_recalled: int = _Count
    times_helped: int = _Count
    times_harmed: int = _Count
    source: MessageSource | None = None


class SegmentLine(BaseModel):
    """A segment, and its file."""

    log_id: str
    fingerprint: str
    selection: str
    codec: str
    bytes: int = Field(ge=0)
    sha256: str

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


def segment_file(number: int) -> str:
    """Return the name of the file of a line, counted from 0."""
    return f"segments/{number:08}.safetensors"


def checked_key(key: object) -> bytes:
    """Return the key, if it is one.

    Raises:
        StoreError: It is not made of at least 32 bytes.
    """
    if not isinstance(key, bytes) or len(key) < _KEY_BYTES:
        raise StoreError(
            f"A key for archives must be at least {_KEY_BYTES} secret random bytes; "
            f"`openssl rand -out FILE {_KEY_BYTES}` makes one."
        )
    return key


def pages(items: Iterable[_T], size: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yield items in lists, each of at most 500 items and 16 MiB, or of one item.

    Args:
        items: The items.
        size: Bytes of an item.
    """
    page: list[_T] = []
    filled = 0
    for item in items:
        if page and (len(page) == _PAGE or filled + size(item) > _PAGE_BYTES):
            yield page
            page, filled = [], 0
        page.append(item)
        filled += size(item)
    if page:
        yield page


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""

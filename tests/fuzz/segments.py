"""Segment files: what is no segment of this model and trace is refused, and put aside."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from lag_integrations.errors import FingerprintMismatchError, SegmentCorruptedError
from lag_integrations.kv.codecs import CODECS
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment, sha256_hex
from lag_integrations.store.log_id import log_id
from lag_integrations.store.store import LogStore
from tests.conftest import qa
from tests.store.model import tiny_engine

WORDS = (
    *('"groups":"', '"dtype":"', '"codec":"', '"background":"', '"info":"', '"log_id":"'),
    *('"shape":[', '"data_offsets":[', '"slots.0.0":', '"slots.0.1.scale":', ".like", ".low"),
    *("F32", "BF16", "F16", "F8_E4M3", "I8", "U8", "I64", "float32", "bfloat16", "float16"),
    *("null", "true", "1e999", "NaN", "Infinity", "-1", "9223372036854775807", "{}", "[]"),
)
TRACE = qa("Is it so ?", "Yes .")
MODEL = "m" * 64
"""In the inputs, instead of the model's fingerprint: that may differ from machine to machine."""
KEY = SegmentKey(log_id("default", TRACE), MODEL, "last_response", CODECS[0])
RAW, STORED = 128, 64
"""In an input's first byte: it is a file as it is, not the header, a line break and the tensors of
one that is made whole; it is read by the store in any case."""


def seeds() -> Iterator[bytes]:
    engine = tiny_engine()
    for number, codec in enumerate(CODECS):
        segment = replace(engine.encode(TRACE), fingerprint=MODEL)
        twice = replace(segment, slots=(*segment.slots, *engine.encode(TRACE).slots))
        for made in (segment, twice):
            data = dump_segment(made, replace(KEY, codec=codec))
            end = 8 + int.from_bytes(data[:8], "little")
            for flags in (0, STORED):
                yield bytes([number | flags]) + data[8:end].rstrip() + b"\n" + data[end:]
            yield bytes([number | RAW]) + data


@contextmanager
def opened() -> Iterator[Callable[[bytes], None]]:
    engine = tiny_engine()
    fingerprint = engine.fingerprint.id
    wanted = engine.encodable(TRACE)
    right = engine.encode(TRACE)

    def checked(segment: Segment) -> Segment:
        engine.encoder.check(segment, wanted)
        return segment

    with tempfile.TemporaryDirectory() as folder:
        store = LogStore(folder, "default")
        store.ledger.add([TRACE])

        def check(data: bytes) -> None:
            first, file = data[:1] or b"\0", data[1:].replace(MODEL.encode(), fingerprint.encode())
            codec = CODECS[(first[0] & 63) % len(CODECS)]
            key = replace(KEY, fingerprint=fingerprint, codec=codec)
            if not first[0] & RAW:
                header, _, tensors = file.partition(b"\n")
                header += b" " * (-len(header) % 8)
                file = len(header).to_bytes(8, "little") + header + tensors
            try:
                segment = load_segment(file, key, sha256_hex(file))
            except (SegmentCorruptedError, FingerprintMismatchError):
                if not first[0] & STORED:
                    return
                segment = None
            else:
                assert 0 <= segment.background <= len(segment)
                for slot in (slot for pair in segment.slots for slot in pair):
                    assert slot.dim() == 4
                    assert slot.shape[2] == len(segment)
            read_by_the_store(file, key, segment)

        def read_by_the_store(file: bytes, key: SegmentKey, segment: Segment | None) -> None:
            name = f"segment-{sha256_hex(file)}.safetensors"
            path = Path(folder, "segments", name)
            path.write_bytes(file)
            store.segments.add(key, file=name, tokens=1, size=len(file))
            loaded = store.load(key, name, checked)
            assert path.exists() == (loaded is not None), "neither used nor put aside"
            if loaded is not None:
                assert segment is not None, "used, though it is no segment"
                assert torch.equal(loaded.token_ids, right.token_ids)
                for pair, others in zip(loaded.slots, right.slots, strict=True):
                    assert [slot.shape for slot in pair] == [slot.shape for slot in others]
                    assert all(slot.isfinite().all() for slot in pair)

        yield check
        store.close()

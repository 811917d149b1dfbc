"""Segment files that somebody else wrote: they are put aside, and never cost an answer."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

from lag_integrations import Engine, KVLogMemory, Trace
from lag_integrations.kv.segment import Segment
from lag_integrations.kv.segment_file import dump_segment, sha256_hex
from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa
from tests.store.model import hash_embedder

QUESTION = "What is the phone number of Acme ?"
TRACE = qa(QUESTION, "The phone number of Acme is 555-1000.")
FORGED = qa(QUESTION, "The phone number of Acme is 900-6666.")


@pytest.fixture
def memory(tmp_path, tiny):
    settings: dict[str, Any] = {"embedder": hash_embedder, "min_score": -1.0, "hot_bytes": 0}
    with KVLogMemory(tmp_path / "m", **settings) as memory:
        memory.attach(tiny)
        memory.add(TRACE)
        memory.flush()
        yield memory


def only_file(memory: KVLogMemory) -> tuple[Any, Path]:
    ((key, name, _),) = memory.store.segments.all_files()
    return key, memory.path / "segments" / name


def put_in_place(
    memory: KVLogMemory,
    segment: Segment,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> None:
    """Replace the segment as somebody does who can write the ledger, too."""
    ((key, name, _),) = memory.store.segments.all_files()
    data = change(dump_segment(segment, key))
    file = f"{name.rpartition('-')[0]}-{sha256_hex(data)}.safetensors"
    memory.store.segment_files.put(file, data)
    memory.store.segments.add(key, file=file, tokens=len(segment), size=len(data))
    memory.store.retry_removals()


def loaded(memory: KVLogMemory) -> Segment:
    (segment,) = memory.segments(memory.recall(QUESTION))
    return segment


def same(one: Segment, other: Segment) -> bool:
    return torch.equal(one.token_ids, other.token_ids) and all(
        torch.allclose(mine, theirs, atol=1e-4)
        for pair, others in zip(one.slots, other.slots, strict=True)
        for mine, theirs in zip(pair, others, strict=True)
    )


@pytest.mark.parametrize(
    ("renamed", "says"), [(False, "written by somebody else"), (True, "is missing")]
)
def test_a_segment_that_somebody_else_wrote_is_not_used(memory, tiny, caplog, renamed, says):
    """Whoever can only write files changes no name that the ledger knows."""
    key, path = only_file(memory)
    data = dump_segment(tiny.encode(FORGED), key)
    path.chmod(0o600)
    path.write_bytes(data)
    if renamed:
        stem, _, _ = path.stem.rpartition("-")
        path.rename(path.with_name(f"{stem}-{sha256_hex(data)}.safetensors"))
    assert same(loaded(memory), tiny.encode(TRACE))
    assert says in caplog.text
    assert memory.verify() == []


HUGE = 2**36
"""Bytes of a file that takes none on the disk."""


@pytest.mark.parametrize("use", ["load", "verify", "back up"])
def test_a_huge_file_in_a_segments_place_is_not_read(memory, tiny, tmp_path, caplog, use):
    _, path = only_file(memory)
    path.chmod(0o600)
    os.truncate(path, HUGE)
    begin = time.process_time()
    if use == "load":
        assert same(loaded(memory), tiny.encode(TRACE))
        assert f"has {HUGE} bytes" in caplog.text
        assert memory.verify() == []
        assert path.name in {file.name for file in memory.path.glob("segments/*/quarantine/*/*")}
    elif use == "verify":
        (problem,) = memory.verify()
        assert problem.kind == "segment_damaged"
        assert f"has {HUGE} bytes" in problem.detail
    else:
        assert memory.backup_to(tmp_path / "backup").segments == 0
    assert time.process_time() - begin < 1


def test_more_than_an_object_should_hold_is_not_read(tmp_path, tiny, caplog):
    url = f"memory://{uuid4().hex}"
    settings: dict[str, Any] = {"embedder": hash_embedder, "min_score": -1.0, "hot_bytes": 0}
    with KVLogMemory(tmp_path / "m", segments=url, **settings) as memory:
        memory.attach(tiny)
        memory.add(TRACE)
        memory.flush()
        ((_, name, nbytes),) = memory.store.segments.all_files()
        memory.store.segment_files.put(name, bytes(2**20))
        assert same(loaded(memory), tiny.encode(TRACE))
        assert f"has more than {nbytes} bytes" in caplog.text
        assert memory.verify() == []


def of(trace: Trace) -> Callable[[Engine, Segment], Segment]:
    return lambda tiny, _: tiny.encode(trace)


def with_slots(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Segment]:
    def changed(_: Engine, segment: Segment) -> Segment:
        slots = tuple((change(first), change(second)) for first, second in segment.slots)
        return replace(segment, slots=slots)

    return changed


def with_ids(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Segment]:
    return lambda _, segment: replace(segment, token_ids=change(segment.token_ids))


FORGERIES: dict[str, Callable[[Engine, Segment], Segment]] = {
    "of another trace": of(FORGED),
    "a group twice": lambda _, segment: replace(
        segment, slots=(*segment.slots, *with_slots(torch.clone)(_, segment).slots)
    ),
    "twice the heads": with_slots(lambda slot: slot.repeat(1, 2, 1, 1)),
    "half the dimensions": with_slots(lambda slot: slot[..., : slot.shape[-1] // 2].contiguous()),
    "layers as heads": with_slots(lambda slot: slot.transpose(0, 1).contiguous()),
    "another dtype": with_slots(lambda slot: slot.half()),
    "foreign tokens": with_ids(lambda ids: ids + 10**9),
    "negative tokens": with_ids(lambda ids: -ids - 1),
    "all background": lambda _, segment: replace(segment, background=len(segment)),
}


NOT_WRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "no groups": lambda data: data.replace(b'"groups":"1"', b'"groups":"0"'),
    "not a number": lambda data: data[:-4] + struct.pack("<f", float("nan")),
    "infinite": lambda data: data[:-4] + struct.pack("<f", float("-inf")),
}
"""What `dump_segment` refuses to write."""


@pytest.mark.parametrize("forgery", [*FORGERIES, *NOT_WRITTEN])
def test_what_the_trace_does_not_say_is_put_aside(memory, tiny, forgery, caplog):
    """Written by somebody who can write the ledger: shapes, numbers and tokens are looked at."""
    right = tiny.encode(TRACE)
    if forgery in FORGERIES:
        put_in_place(memory, FORGERIES[forgery](tiny, right))
    else:
        put_in_place(memory, right, NOT_WRITTEN[forgery])
    _, path = only_file(memory)
    chat = LAGChatModel(tiny, memory=memory, max_tokens=4)
    answer = chat.invoke(QUESTION)
    assert len(answer.response_metadata["lag"]["log_ids"]) == 1
    assert "is put aside" in caplog.text
    assert not path.exists()
    (aside,) = (memory.path / "segments").rglob("quarantine/**/*.safetensors")
    assert aside.name == path.name
    assert same(loaded(memory), right)
    assert memory.verify() == []


def test_a_segment_that_this_store_wrote_is_read(memory, tiny, caplog):
    """The test of these tests: nothing is put aside that is right."""
    put_in_place(memory, tiny.encode(TRACE))
    _, path = only_file(memory)
    assert same(loaded(memory), tiny.encode(TRACE))
    assert path.exists()
    assert "put aside" not in caplog.text


def test_another_key_leaves_segments_and_distrusts_archives(memory, tiny, tmp_path):
    _, path = only_file(memory)
    memory.export_to(tmp_path / "a.lag", segments=True)
    memory.change_key()
    memory.flush()
    assert only_file(memory)[1] == path
    assert same(loaded(memory), tiny.encode(TRACE))
    assert memory.verify() == []
    assert not memory.import_from(tmp_path / "a.lag").trusted


def test_an_imported_segment_is_compared_before_it_is_held(memory, tiny, tmp_path, caplog):
    """Also of an archive that is signed with a key which both stores were given."""
    key = bytes(range(32))
    put_in_place(memory, tiny.encode(FORGED, tiny.selection))
    memory.export_to(tmp_path / "a.lag", segments=True, key=key)
    with KVLogMemory(tmp_path / "target", embedder=hash_embedder, min_score=-1.0) as target:
        assert target.import_from(tmp_path / "a.lag", key=key).segments == 1
        target.attach(tiny)  # not before: its worker might make the segment first
        target.flush()
        assert same(loaded(target), tiny.encode(TRACE))
        assert "is put aside" in caplog.text
        assert same(loaded(target), tiny.encode(TRACE))
        assert len(target.store.segment_cache) == 1
        assert target.verify() == []

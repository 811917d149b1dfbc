"""What is done otherwise when it is large gives what is given when it is small."""

from __future__ import annotations

import mmap
import os

import pytest
import torch

from lag_integrations.kv import positions
from lag_integrations.kv.cache import Slots, append_layer, new_cache, read_layers
from lag_integrations.kv.pages import buffer, empty
from lag_integrations.kv.positions import LayerGroup, Positions
from lag_integrations.kv.rotation import Kernel
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.blobs import Blobs

HUGE = hasattr(mmap, "MADV_HUGEPAGE")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_are_of_memory_of_their_own(dtype):
    like = torch.zeros(0, dtype=dtype)
    shape = (3, 2**19, 3)
    one, other = empty(shape, like), empty(shape, like)
    assert (one.shape, one.dtype, one.is_contiguous()) == (torch.Size(shape), dtype, True)
    one.fill_(1)
    other.fill_(2)
    assert bool((one == 1).all())
    if HUGE:
        assert isinstance(buffer(2**23), mmap.mmap)
    assert isinstance(buffer(100), bytearray)
    assert empty((2, 3), like).shape == (2, 3)


def test_a_cache_of_large_layers_holds_what_came():
    cache = new_cache()
    pieces = [torch.randn(1, 2, tokens, 512) for tokens in (1100, 1, 300, 2000)]
    for piece in pieces:
        append_layer(cache, 0, (piece, -piece))
    keys, values = read_layers(cache)[0]
    assert torch.equal(keys, torch.cat(pieces, dim=2))
    assert torch.equal(values, -keys)


@pytest.mark.parametrize("sources", ["one", "several"])
def test_rotating_in_blocks_is_rotating(monkeypatch, sources):
    layers, tokens = 7, 5
    angles = torch.randn(layers if sources == "several" else 1, 1, tokens, 2)
    monkeypatch.setattr(positions, "_stacked_angles", lambda *_: (angles.cos(), angles.sin()))
    group = LayerGroup(tuple(range(layers)), (Kernel("half", 0, 4), None), (), (2, 2), (6, 6))
    part = torch.randn(layers, 2, tokens, 6), torch.randn(layers, 2, tokens, 6)

    def rotated() -> Slots:
        out = torch.empty_like(part[0]), torch.empty_like(part[1])
        Positions((group,), 10).apply(group, [part], torch.arange(tokens), out=out, key_scale=2.0)
        return out

    whole = rotated()
    for block in (1, 3 * part[0][0].nbytes, 10**6):
        monkeypatch.setattr(positions, "_CACHED_BYTES", 0)
        monkeypatch.setattr(positions, "_BLOCK_BYTES", block)
        assert all(torch.equal(*pair) for pair in zip(rotated(), whole, strict=True))


def test_a_large_segment_comes_back_from_its_file(tmp_path):
    slots = torch.randn(2, 2, 300, 1024), torch.randn(2, 2, 300, 1024)
    key = SegmentKey("log", "model", "last_turn", "native")
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key)
    blobs = Blobs(str(tmp_path))
    blobs.put("log", data)
    if HUGE:
        assert isinstance(blobs.get("log"), mmap.mmap)
    assert bytes(blobs.get("log")) == data
    read = load_segment(blobs.get("log"), key)
    assert torch.equal(read.token_ids, torch.arange(300))
    assert all(torch.equal(*pair) for pair in zip(read.slots[0], slots, strict=True))


@pytest.mark.parametrize("codec", ["native", "int8", "int4+zstd"])
def test_only_what_is_used_of_a_file_stays_in_memory(codec):
    slots = torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    key = SegmentKey("log", "model", "last_turn", codec)
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key)
    read = load_segment(data, key)
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (read.token_ids, *read.slots[0])
    }
    assert sum(held.values()) < read.nbytes + 4096


def test_without_huge_pages_memory_is_ordinary(monkeypatch):
    def none(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("lag_integrations.kv.pages.mmap.mmap", none)
    assert isinstance(buffer(2**23), bytearray)
    assert empty((2**22,), torch.zeros(0)).shape == (2**22,)


def test_a_file_that_gets_shorter_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    blobs = Blobs(str(tmp_path))
    blobs.put("log", b"a segment")
    real = os.fstat

    class Longer:
        def __init__(self, descriptor: int) -> None:
            self.st_size = real(descriptor).st_size + 5

    monkeypatch.setattr("lag_integrations.store.blobs.os.fstat", Longer)
    with pytest.raises(OSError, match="cut short"):
        blobs.get("log")

"""What is done otherwise when it is large gives what is given when it is small."""

from __future__ import annotations

import gc
import mmap
import os
import threading
import time

import pytest
import torch

from lag_integrations.kv import pages
from lag_integrations.kv import position_scheme as positions
from lag_integrations.kv.cache import LayerKV, append_layer, new_cache, read_layers
from lag_integrations.kv.pages import empty
from lag_integrations.kv.position_scheme import LayerGroup, Positions
from lag_integrations.kv.rope import Kernel
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment
from lag_integrations.store.segment_files import SegmentFiles

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
    assert empty((2, 3), like).shape == (2, 3)


@pytest.mark.skipif(not HUGE, reason="memory is ordinary here")
def test_large_memory_is_used_again_when_nobody_uses_it():
    pages.release()
    number = 3 * 2**21
    one = empty((number,), torch.zeros(0))
    part = one[5:10]
    place = one.data_ptr()
    del one
    other = empty((number,), torch.zeros(0))
    assert other.data_ptr() != place, "a view is still in use"
    del part
    again = empty((number - 1000,), torch.zeros(0))
    assert again.data_ptr() == place
    del again
    assert empty((number // 2,), torch.zeros(0)).data_ptr() != place, "much too large"
    pages.release()


@pytest.mark.skipif(not HUGE, reason="memory is ordinary here")
def test_little_memory_waits(monkeypatch):
    pages.release()
    monkeypatch.setattr(pages, "_MOST_FREE", 3 * 2**23)
    blocks = [pages.buffer(2**23) for _ in range(6)]
    del blocks
    gc.collect()
    assert len(pages._free) == 3
    pages.release()
    assert len(pages._free) == 0


@pytest.mark.skipif(not HUGE, reason="memory is ordinary here")
def test_threads_never_share_memory():
    wrong = []

    def use(number: int) -> None:
        for _ in range(200):
            mine = empty((2**20 + 1024 * number,), torch.zeros(0))
            mine[::1024] = number
            time.sleep(0)
            if not bool((mine[::1024] == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    pages.release()


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

    def rotated() -> LayerKV:
        out = torch.empty_like(part[0]), torch.empty_like(part[1])
        Positions((group,), 10, torch.float32).apply(
            group, [part], torch.arange(tokens), out=out, temperature=0.5, backgrounds=[2]
        )
        return out

    whole = rotated()
    for block in (1, 3 * part[0][0].nbytes, 10**6):
        monkeypatch.setattr(positions, "_CACHED_BYTES", 0)
        monkeypatch.setattr(positions, "_BLOCK_BYTES", block)
        assert all(torch.equal(*pair) for pair in zip(rotated(), whole, strict=True))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_large_segment_comes_back_from_its_file(tmp_path, monkeypatch, mapped):
    if not mapped:
        monkeypatch.setattr("lag_integrations.store.segment_files.is_local", lambda _: False)
    slots = torch.randn(2, 2, 300, 1024), torch.randn(2, 2, 300, 1024)
    key = SegmentKey("log", "model", "last_turn", "native")
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key, b"secret")
    blobs = SegmentFiles(str(tmp_path))
    blobs.put("log", data)
    for _ in range(2):  # the second time, into memory that was used
        assert bytes(blobs.get("log")) == data
    read = load_segment(blobs.get("log"), key, b"secret")
    assert torch.equal(read.token_ids, torch.arange(300))
    assert all(torch.equal(*pair) for pair in zip(read.slots[0], slots, strict=True))


@pytest.mark.parametrize("codec", ["native", "int8", "int4+zstd"])
def test_only_what_is_used_of_a_file_stays_in_memory(codec):
    slots = torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    key = SegmentKey("log", "model", "last_turn", codec)
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key, b"secret")
    read = load_segment(data, key, b"secret")
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (read.token_ids, *read.slots[0])
    }
    assert sum(held.values()) < read.nbytes + 4096


def test_without_huge_pages_memory_is_ordinary(monkeypatch):
    def none(*_: object, **__: object) -> None:
        raise OSError("no")

    pages.release()
    monkeypatch.setattr("lag_integrations.kv.pages.mmap.mmap", none)
    assert bytes(pages.buffer(2**23)) == bytes(2**23)
    assert empty((2**22,), torch.zeros(0)).shape == (2**22,)


def test_a_file_that_gets_shorter_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    blobs = SegmentFiles(str(tmp_path))
    blobs.put("log", b"a segment")
    monkeypatch.setattr("lag_integrations.store.segment_files.mapped", lambda *_: None)
    real = os.fstat

    class Longer:
        def __init__(self, descriptor: int) -> None:
            self.st_size = real(descriptor).st_size + 5

    monkeypatch.setattr("lag_integrations.store.segment_files.os.fstat", Longer)
    with pytest.raises(OSError, match="cut short"):
        blobs.get("log")

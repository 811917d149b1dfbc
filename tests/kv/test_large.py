"""What is done otherwise when it is large gives what is given when it is small."""

from __future__ import annotations

import os

import pytest
import torch

from lag_integrations.kv import position_scheme
from lag_integrations.kv.cache import LayerKV, append_layer, new_cache, read_layers
from lag_integrations.kv.position_scheme import LayerGroup, Positions
from lag_integrations.kv.rope import Kernel
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment, sha256_hex
from lag_integrations.store.segment_files import SegmentFiles


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
    monkeypatch.setattr(position_scheme, "_stacked_angles", lambda *_: (angles.cos(), angles.sin()))
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
        monkeypatch.setattr(position_scheme, "_CACHED_BYTES", 0)
        monkeypatch.setattr(position_scheme, "_BLOCK_BYTES", block)
        assert all(torch.equal(*pair) for pair in zip(rotated(), whole, strict=True))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_large_segment_comes_back_from_its_file(tmp_path, monkeypatch, mapped):
    if not mapped:
        monkeypatch.setattr("lag_integrations.store.segment_files.is_local_disk", lambda _: False)
    slots = torch.randn(2, 2, 300, 1024), torch.randn(2, 2, 300, 1024)
    key = SegmentKey("log", "model", "last_turn", "native")
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key)
    blobs = SegmentFiles(str(tmp_path))
    blobs.put("log", data)
    assert bytes(blobs.get("log", len(data))) == data
    read = load_segment(blobs.get("log", len(data)), key, sha256_hex(data))
    assert torch.equal(read.token_ids, torch.arange(300))
    assert all(torch.equal(*pair) for pair in zip(read.slots[0], slots, strict=True))


@pytest.mark.parametrize("codec", ["native", "int8", "int4+zstd"])
def test_only_what_is_used_of_a_file_stays_in_memory(codec):
    slots = torch.randn(2, 2, 300, 64), torch.randn(2, 2, 300, 64)
    key = SegmentKey("log", "model", "last_turn", codec)
    data = dump_segment(Segment(torch.arange(300), (slots,), "model"), key)
    read = load_segment(data, key, sha256_hex(data))
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (read.token_ids, *read.slots[0])
    }
    assert sum(held.values()) < read.nbytes + 4096


def test_a_file_that_gets_shorter_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    blobs = SegmentFiles(str(tmp_path))
    blobs.put("log", b"a segment")

    def cut(path: str, nbytes: int) -> None:
        os.chmod(path, 0o600)
        os.truncate(path, nbytes - 1)

    monkeypatch.setattr("lag_integrations.store.segment_files.mapped", cut)
    with pytest.raises(OSError, match="cut short"):
        blobs.get("log", len(b"a segment"))

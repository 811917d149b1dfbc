"""The segment file: what is damaged, foreign or forged never becomes a segment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load

from lag_integrations.errors import (
    EncodingError,
    FingerprintMismatchError,
    SegmentCorruptedError,
    StoreError,
)
from lag_integrations.kv.codecs import CODECS
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment, sha256_hex

KEY = SegmentKey("log", "model", "last_response", "native")
REFUSED = (SegmentCorruptedError, FingerprintMismatchError)


def segment(tokens: int = 5, dtype: torch.dtype = torch.float32) -> Segment:
    """Two groups of different shapes, as of a model with two kinds of layers."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((3, 2, tokens, 6), (3, 2, tokens, 6)), ((1, 1, tokens, 64), (1, 1, tokens, 80))
    first, second = (
        tuple(torch.randn(shape, generator=generator).to(dtype) for shape in pair)
        for pair in shapes
    )
    ids, info = torch.arange(tokens) + 7, {"cut_tokens": "0"}
    return Segment(ids, (first, second), "model", info, tokens // 2)


def read_as(data: bytes, key: SegmentKey) -> Segment:
    """Read a file as one that this store wrote, whatever it holds."""
    return load_segment(data, key, sha256_hex(data))


def rewritten(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Change the header of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


DATA = {name: dump_segment(segment(), replace(KEY, codec=name)) for name in CODECS}
HASHES = {name: sha256_hex(data) for name, data in DATA.items()}
WHOLE, HASH = DATA["native"], HASHES["native"]
HEADER_END = 8 + int.from_bytes(WHOLE[:8], "little")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 31, 33])
@pytest.mark.parametrize("name", CODECS)
def test_round_trip(name, tokens, dtype):
    made, key = segment(tokens, dtype), replace(KEY, codec=name)
    read = read_as(dump_segment(made, key), key)
    assert torch.equal(read.token_ids, made.token_ids)
    assert (read.fingerprint, read.info, read.background) == (
        made.fingerprint,
        made.info,
        made.background,
    )
    for pair, stored in zip(read.slots, made.slots, strict=True):
        for slot, original in zip(pair, stored, strict=True):
            assert (slot.dtype, slot.shape) == (dtype, original.shape)
            assert torch.allclose(slot.float(), original.float(), atol=0.3)
            if name.startswith(("native", "fp32")):
                assert torch.equal(slot, original)


def test_another_whole_segment_of_the_same_key_is_refused():
    with pytest.raises(SegmentCorruptedError, match="written by somebody else"):
        load_segment(dump_segment(segment(6), KEY), KEY, HASH)


@given(st.sampled_from(CODECS), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_changed_byte_is_found(name, place, change):
    data = bytearray(DATA[name])
    data[int(place * len(data))] ^= change
    with pytest.raises(REFUSED):
        load_segment(bytes(data), replace(KEY, codec=name), HASHES[name])


def test_every_flipped_bit_of_the_head_is_found():
    """Prefix, header and the first tensors, all of them: there, chance would miss single bits."""
    for place in range(HEADER_END + 64):
        for bit in range(8):
            data = bytearray(WHOLE)
            data[place] ^= 1 << bit
            with pytest.raises(REFUSED):
                load_segment(bytes(data), KEY, HASH)


@given(st.floats(0, 1, exclude_max=True))
@example(0.0)
def test_a_cut_file_is_found(share):
    with pytest.raises(SegmentCorruptedError):
        load_segment(WHOLE[: int(share * len(WHOLE))], KEY, HASH)


@given(st.binary(min_size=1, max_size=100), st.floats(0, 1))
def test_inserted_and_appended_bytes_are_found(more, place):
    where = int(place * len(WHOLE))
    data = WHOLE[:where] + more + WHOLE[where:]
    with pytest.raises(SegmentCorruptedError):
        load_segment(data, KEY, HASH)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 4096))
def test_a_hole_of_zeros_is_found(start, length):
    data = WHOLE[:start] + bytes(len(WHOLE[start : start + length])) + WHOLE[start + length :]
    if data != WHOLE:
        with pytest.raises(SegmentCorruptedError):
            load_segment(data, KEY, HASH)


@given(st.binary(max_size=300))
@example(b"")
@example(bytes(101))
@example(b"\xff" * 101)
def test_any_bytes_are_refused(data):
    with pytest.raises(SegmentCorruptedError):
        load_segment(data, KEY, HASH)
    with pytest.raises(SegmentCorruptedError):
        read_as(data, KEY)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(JSON)
def test_any_header_with_a_right_hash_is_refused(header):
    text = json.dumps(header).encode().ljust(96)
    with pytest.raises(SegmentCorruptedError):
        read_as(len(text).to_bytes(8, "little") + text + WHOLE[HEADER_END:], KEY)


@given(st.data(), st.sampled_from(["native", "int8", "int4", "int8+zstd"]))
def test_a_forged_header_gives_a_sound_segment_or_is_refused(data, name):
    """Whatever is written into one field: no other exception comes out."""

    def change(header: dict[str, Any]) -> None:
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        field = data.draw(st.sampled_from(sorted(entry)))
        entry[field] = data.draw(
            JSON | st.lists(st.integers(-2, 90), max_size=5) | st.sampled_from(["U8", "F4"])
        )

    key = replace(KEY, codec=name)
    try:
        read = read_as(rewritten(DATA[name], change), key)
    except REFUSED:
        return
    for pair in read.slots:
        assert all(slot.dim() == 4 and slot.shape[2] == len(read) for slot in pair)


@given(st.data(), st.sampled_from(CODECS))
def test_forged_tensors_give_a_sound_segment_or_are_refused(data, name):
    payload = bytearray(DATA[name])
    start = 8 + int.from_bytes(payload[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(start, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    key = replace(KEY, codec=name)
    try:
        read = read_as(bytes(payload), key)
    except SegmentCorruptedError:
        assert name.endswith("+zstd")  # a broken frame; elsewhere these are just other numbers
    else:
        assert [pair[0].shape for pair in read.slots] == [(3, 2, 5, 6), (1, 1, 5, 64)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"log_id": "another"}, "another log_id: 'log', not 'another'"),
        ({"selection": "last_action"}, "another selection: 'last_response', not 'last_action'"),
        ({"codec": "int8"}, "another codec: 'native', not 'int8'"),
    ],
)
def test_the_segment_of_another_key_is_refused(change, says):
    with pytest.raises(SegmentCorruptedError, match=says):
        read_as(WHOLE, replace(KEY, **change))


@pytest.mark.parametrize("background", ["6", "-1", "all"])
def test_a_background_that_is_not_within_the_segment_is_refused(background):
    data = rewritten(WHOLE, lambda header: header["__metadata__"].update(background=background))
    with pytest.raises(SegmentCorruptedError, match="cannot be understood"):
        read_as(data, KEY)


def test_the_segment_of_another_model_is_refused():
    with pytest.raises(FingerprintMismatchError, match="another"):
        read_as(WHOLE, replace(KEY, fingerprint="another"))
    # Of another log of another model, the model is what must be said.
    with pytest.raises(FingerprintMismatchError):
        read_as(WHOLE, replace(KEY, fingerprint="another", log_id="another"))
    with pytest.raises(FingerprintMismatchError, match="another"):
        dump_segment(segment(), replace(KEY, fingerprint="another"))


def test_every_field_of_the_key_is_in_the_file():
    """A field that is added to the key must not be forgotten here."""
    metadata = json.loads(WHOLE[8:HEADER_END])["__metadata__"]
    assert {f.name: metadata[f.name] for f in fields(KEY)} == {
        "log_id": "log",
        "fingerprint": "model",
        "selection": "last_response",
        "codec": "native",
    }


def test_a_file_of_an_earlier_version_is_read():
    """As archives hold them: their checksum is in the metadata."""

    def change(header: dict[str, Any]) -> None:
        header["__metadata__"]["checksum"] = "0" * 64

    read = read_as(rewritten(WHOLE, change), KEY)
    assert torch.equal(read.slots[0][0], segment().slots[0][0])


@pytest.mark.parametrize("field", ["format", "version"])
def test_another_format_or_version_is_refused(field):
    def change(header: dict[str, Any]) -> None:
        header["__metadata__"][field] = "2"

    with pytest.raises(SegmentCorruptedError, match="not a lag-segment of version 4"):
        read_as(rewritten(WHOLE, change), KEY)


@pytest.mark.parametrize("name", ["native", "int4"])
def test_slots_that_do_not_fit_their_tokens_are_refused(name):
    key = replace(KEY, codec=name)
    data = dump_segment(Segment(torch.arange(4), segment().slots, "model"), key)
    with pytest.raises(SegmentCorruptedError, match="does not fit its tokens"):
        read_as(data, key)


def test_an_unknown_codec_is_no_damage():
    for use in (
        lambda key: read_as(WHOLE, key),
        lambda key: dump_segment(segment(), key),
    ):
        with pytest.raises(StoreError, match="no codec 'int7'"):
            use(replace(KEY, codec="int7"))


def test_what_cannot_be_stored_is_refused():
    made = segment()
    double = Segment(made.token_ids, ((made.slots[0][0].double(),) * 2,), "model")
    with pytest.raises(EncodingError, match="float64"):
        dump_segment(double, KEY)
    mixed = Segment(made.token_ids, ((made.slots[0][0].half(), made.slots[0][1]),), "model")
    with pytest.raises(EncodingError, match="float16 and float32"):
        dump_segment(mixed, KEY)


@pytest.mark.parametrize("name", CODECS)
def test_the_file_is_plain_safetensors(name, tmp_path: Path):
    path = tmp_path / "segment.safetensors"
    path.write_bytes(DATA[name])
    assert int.from_bytes(DATA[name][:8], "little") % 8 == 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        tensors = {key: file.get_tensor(key) for key in names}
    assert metadata["codec"] == name
    assert (metadata["format"], metadata["version"]) == ("lag-segment", "4")
    assert torch.equal(tensors["token_ids"], segment().token_ids)
    assert {"slots.0.0", "slots.0.1", "slots.1.0", "slots.1.1"} <= names
    assert load(DATA[name]).keys() == names


def test_a_native_file_holds_the_slots_as_they_are():
    tensors = load(WHOLE)
    assert tensors.keys() == {"token_ids", "slots.0.0", "slots.0.1", "slots.1.0", "slots.1.1"}
    for group, pair in enumerate(segment().slots):
        for index, slot in enumerate(pair):
            assert torch.equal(tensors[f"slots.{group}.{index}"], slot)


def test_slots_that_are_views_are_stored():
    made = segment()
    turned = tuple((a.transpose(0, 1), b.transpose(0, 1)) for a, b in made.slots)
    read = read_as(dump_segment(Segment(made.token_ids, turned, "model"), KEY), KEY)
    for pair, stored in zip(read.slots, turned, strict=True):
        assert all(torch.equal(*both) for both in zip(pair, stored, strict=True))

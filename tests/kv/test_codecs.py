"""Codecs on random segments of odd shapes, and on the real packaged model."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lag_integrations.engine.token_selection import WholeTrace
from lag_integrations.errors import EncodingError, StoreError
from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs import CODECS, codec
from lag_integrations.kv.codecs.scaled import round_up
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment, sha256_hex
from tests.conftest import qa

PLAIN = ("native", "fp32", "bf16", "fp16", "fp8", "int8", "int4")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAST = {"native": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1 + 2**-7  # a bf16 scale that was rounded up
LAYERS, HEADS = 3, 2


def pair(tokens: int, dims: tuple[int, int], dtype: torch.dtype, seed: int = 0) -> LayerKV:
    """Keys with a few large, shifted channels and values with a few large tokens, as models have.

    A scale over the wrong axis makes the small ones next to them vanish. Some rows are zero.
    """
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(LAYERS, HEADS, tokens, dim, generator=generator) for dim in dims)
    keys[..., ::5] = keys[..., ::5] * 50 + 200
    keys[..., 2::5] = keys[..., 2::5] * 0.3 - 100  # far from 0, compared with its range
    values[:, :, ::7] *= 300
    keys[0, 0, :, 1], values[:, :, 1:2] = 0, 0
    return keys.to(dtype), values.to(dtype)


def extremes(exact: torch.Tensor, axis: int, size: int) -> list[torch.Tensor]:
    """Least and greatest value among the `size` neighbours that each value shares a scale with."""
    if not exact.shape[axis]:
        return [exact, exact]
    chunks = exact.split(size, dim=axis)
    return [
        torch.cat([extreme(c, dim=axis, keepdim=True).expand_as(c) for c in chunks], dim=axis)
        for extreme in (torch.amin, torch.amax)
    ]


def bound(name: str, slot: torch.Tensor, axis: int) -> torch.Tensor:
    """The largest error that a value may have: derived from the format, not from the code."""
    exact = slot.double()
    if name in CAST:
        stored = CAST[name] or slot.dtype
        if stored in (slot.dtype, torch.float32):
            return torch.zeros_like(exact)
        # Half a unit in the last place, of normal and of subnormal numbers.
        return exact.abs() * torch.finfo(stored).eps / 2 + torch.finfo(stored).tiny
    least, greatest = extremes(exact, axis, 32 if name == "int4" else 10**6)
    peak = torch.maximum(least.abs(), greatest.abs()) * SCALE
    if name == "fp8":  # 4 significant bits; below 2**-6, steps of 2**-9
        error = exact.abs() / 16 + peak / 448 * 2**-10
    elif name == "int8":
        error = peak / 127 / 2
    else:
        assert name == "int4"
        error = ((greatest - least) + least.abs() / 128) * SCALE / 15 / 2
    # Decoded in fp32, and then rounded to the model's dtype.
    return error + (exact.abs() + error) * (torch.finfo(slot.dtype).eps / 2 + 1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dims", [(6, 80), (64, 64), (7, 33)], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 31, 32, 33, 70])
@pytest.mark.parametrize("name", PLAIN)
def test_error_is_within_the_format(name, tokens, dims, dtype):
    slots = pair(tokens, dims, dtype)
    before = [slot.clone() for slot in slots]
    used = codec(name)
    stored = used.encode(slots)
    decoded = used.decode(stored, dtype)
    for index, (slot, back) in enumerate(zip(slots, decoded, strict=True)):
        assert torch.equal(slot, before[index])
        assert (back.shape, back.dtype) == (slot.shape, dtype)
        error = (back.double() - slot.double()).abs()
        assert (error <= bound(name, slot, 2 + index)).all()
        assert (back[slot == 0] == 0).all() or name == "int4"  # there only where a group is 0
    # The zero rows are exact in every codec.
    assert not decoded[0][0, 0, :, 1].any()
    assert not decoded[1][:, :, 1:2].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["fp8", "int8", "int4"])
def test_the_bounds_are_nearly_reached(name, dtype):
    """The test of the test above: with bounds twice too wide it would say little."""
    slots = pair(200, (64, 64), dtype)
    for index, back in enumerate(codec(name).decode(codec(name).encode(slots), dtype)):
        error = (back.double() - slots[index].double()).abs()
        assert (error > 0.7 * bound(name, slots[index], 2 + index)).any()


@pytest.mark.parametrize("name", ["native", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lossless_codecs_are_bit_equal(name, dtype):
    slots = pair(33, (64, 80), dtype)
    for slot, back in zip(slots, codec(name).decode(codec(name).encode(slots), dtype), strict=True):
        assert torch.equal(slot, back)
        assert torch.equal(torch.signbit(slot), torch.signbit(back))


def test_native_copies_nothing():
    slots = pair(5, (6, 6), torch.float32)
    decoded = codec("native").decode(codec("native").encode(slots), torch.float32)
    assert all(slot is back for slot, back in zip(slots, decoded, strict=True))


@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_scales_are_rounded_up_to_the_next_bf16(number):
    exact = torch.tensor(number, dtype=torch.float32)
    rounded = round_up(exact)
    assert rounded.dtype == torch.bfloat16
    below = torch.nextafter(rounded, torch.tensor(-torch.inf, dtype=torch.bfloat16))
    assert below.float() < exact <= rounded.float()


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_lies_on_the_grid_is_exact(name):
    steps = torch.arange(-127, 128) if name == "int8" else torch.arange(32) % 16 - 256
    grid = (steps * 0.375).expand(len(steps), -1)[None, None]
    slots = grid.mT, grid
    for slot, back in zip(
        slots, codec(name).decode(codec(name).encode(slots), torch.float32), strict=True
    ):
        assert torch.equal(slot, back)


@pytest.mark.parametrize("name", CODECS)
def test_values_at_the_edge_of_the_dtype_stay_finite(name):
    slots = pair(40, (6, 6), torch.float16)
    for slot in slots:
        slot[0, 0, 0], slot[1, 1, 3] = 65504, -65504
    decoded = codec(name).decode(codec(name).encode(slots), torch.float16)
    for back in decoded:
        assert back.isfinite().all()
        assert (back[0, 0, 0] > 65000).all()
        assert (back[1, 1, 3] < -65000).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("name", CODECS)
def test_nan_and_infinity_are_refused(name, slot, bad):
    slots = pair(33, (6, 80), torch.float32)
    codec(name).encode(slots)
    slots[slot][1, 0, 32, 5] = bad
    with pytest.raises(EncodingError, match="NaN, infinite") as caught:
        codec(name).encode(slots)
    assert name.removesuffix("+zstd") in str(caught.value)


def test_fp16_refuses_what_it_cannot_hold():
    slots = pair(3, (6, 6), torch.float32)
    slots[0][0, 0, 0, 0] = 65504
    codec("fp16").encode(slots)
    slots[0][0, 0, 0, 0] = 70000
    with pytest.raises(EncodingError, match="use 'bf16'"):
        codec("fp16").encode(slots)
    codec("bf16").encode(slots)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 33])
@pytest.mark.parametrize("name", PLAIN)
def test_zstd_gives_what_its_base_gives(name, tokens, dtype):
    slots = pair(tokens, (6, 80), dtype)
    plain, packed = codec(name), codec(f"{name}+zstd")
    assert packed.name == f"{name}+zstd"
    inner = plain.encode(slots)
    stored = packed.encode(slots)
    assert {n for n in stored if not n.endswith(".like")} == inner.keys()
    for one, other in zip(plain.decode(inner, dtype), packed.decode(stored, dtype), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_byte_planes_compress_better_than_bytes():
    import zstandard

    values = torch.randn(100_000)
    stored = codec("native+zstd").encode((values.view(1, 1, -1, 1), values.view(1, 1, -1, 1)))
    mixed = zstandard.compress(values.numpy().tobytes())
    assert stored["0"].numel() < 0.95 * len(mixed)
    assert stored["0"].numel() < 0.9 * values.numel() * 4


def test_a_compressed_tensor_of_another_size_is_not_even_unpacked():
    import zstandard

    stored = codec("native+zstd").encode(pair(3, (6, 6), torch.float32))
    frame = zstandard.compress(bytes(10**7))
    stored["0"] = torch.tensor(list(frame), dtype=torch.uint8)
    with pytest.raises(ValueError, match="has not the size that it should have"):
        codec("native+zstd").decode(stored, torch.float32)


def test_zstd_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    codec("int8")
    with pytest.raises(StoreError, match=r"pip install 'lag_integrations\[zstd\]'"):
        codec("int8+zstd")


@pytest.mark.parametrize("name", ["", "int7", "INT8", "zstd", "+zstd", "int8+zstd+zstd"])
def test_an_unknown_codec_is_refused(name):
    with pytest.raises(StoreError, match="native, fp32, bf16, fp16, fp8, int8, int4"):
        codec(name)


def test_every_codec_has_the_name_it_is_found_by():
    assert set(CODECS) == {*PLAIN, *(f"{name}+zstd" for name in PLAIN)}
    assert [codec(name).name for name in CODECS] == list(CODECS)


def test_sizes():
    """Bytes of what is stored, for each value of a segment of 160 tokens in fp32."""
    slots = pair(160, (64, 64), torch.float32)
    count = sum(slot.numel() for slot in slots)
    size = {
        name: sum(t.numel() * t.element_size() for t in codec(name).encode(slots).values()) / count
        for name in CODECS
    }
    assert size["native"] == size["fp32"] == 4
    assert size["bf16"] == size["fp16"] == 2
    # A scale for 160 keys, one for 64 values.
    assert size["int8"] == size["fp8"] == pytest.approx(1 + (2 / 160 + 2 / 64) / 2)
    assert size["int4"] == pytest.approx(0.5 + 4 / 32)
    for name in PLAIN:
        assert size[f"{name}+zstd"] < size[name]


# The greatest mean difference of logits, in standard deviations of the logits, on the real model.
DISTANCE = {
    "native": 0.0,
    "fp32": 0.0,
    "bf16": 0.01,
    "fp16": 0.002,
    "fp8": 0.1,
    "int8": 0.01,
    "int4": 0.1,
}


@pytest.fixture(scope="module")
def case(engine):
    segment = engine.encode(
        qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741."),
        WholeTrace(),
    )

    def logits(segment: Segment) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        hook = engine.model.lm_head.register_forward_hook(
            lambda _, __, scores: seen.append(scores[0, -1].clone())
        )
        engine.generate(
            qa("Which code opens the vault in Lima?", "The code is").messages,
            [segment],
            attention_temperature=1.0,
            max_new_tokens=1,
            do_sample=False,
        )
        hook.remove()
        return seen[-1]

    return segment, logits, logits(segment)


@pytest.mark.parametrize("name", CODECS)
def test_the_real_model_hardly_notices(case, name):
    segment, logits, expected = case
    key = SegmentKey("log", segment.fingerprint, "whole_trace", name)
    data = dump_segment(segment, key)
    back = load_segment(data, key, sha256_hex(data))
    found = logits(back)
    difference = ((found - expected).abs().mean() / expected.std()).item()
    assert difference <= DISTANCE[name.removesuffix("+zstd")]
    assert found.argmax() == expected.argmax()
    if name.removesuffix("+zstd") not in ("native", "fp32"):
        assert difference > 0

"""Spliced segments give what an ordinary full prefill gives, on tiny models of every family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from lag_integrations.engine.quantization.quantize import quantize
from lag_integrations.engine.quantization.scheme import Quantization
from lag_integrations.kv.cache import append_layer, new_cache, read_layers
from lag_integrations.kv.encode import encode, encode_rows
from lag_integrations.kv.inject import inject
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.prefix_cache import PrefixCache
from lag_integrations.kv.probe import probe
from lag_integrations.kv.segment import Segment, SegmentKey
from lag_integrations.kv.segment_file import dump_segment, load_segment, sha256_hex
from tests.kv.families import (
    FAMILIES,
    FINGERPRINT,
    PREFIX,
    STARTS,
    TOTAL,
    Family,
    differences,
    feed,
    full_logits,
    greedy,
    load,
    tokens,
    whole_prefix,
    with_segments,
)

# fp32 angles at positions near 1000 are exact to 6e-5; sharp random attention amplifies that.
TOLERANCE = 1e-3
BOTH_SCHEMES = {
    "llama",
    "qwen2_moe",
    "gemma3n",
    "gemma4",
    "deepseek_v3",
    "gpt_oss",
    "phi",
    "bloom",
}
"""Families of every structure, which are quantised by both schemes; the others take turns."""


@dataclass(frozen=True)
class Case:
    """One family's model with all that is computed once for it."""

    family: Family
    model: PreTrainedModel
    positions: Positions
    segment: Segment
    logits: torch.Tensor
    """Of an ordinary full prefill of all tokens."""
    answer: list[int]
    """The 16 tokens that follow, each from an ordinary full prefill."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are fastest on one thread; those of other tests are not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    family = request.param
    model = load(family)
    positions = probe(model)
    ids = tokens()
    while len(ids) < TOTAL + 16:
        ids.append(int(full_logits(model, ids)[-1].argmax()))
    logits = full_logits(model, ids[:TOTAL])
    return Case(family, model, positions, whole_prefix(model, positions), logits, ids[TOTAL:])


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual - expected).abs().max().item()


def test_probe_finds_the_scheme(case: Case) -> None:
    rotated = any(kernel is not None for group in case.positions.groups for kernel in group.kernels)
    assert rotated == case.family.rotary
    assert case.positions.window == case.family.window
    # The comparison is worth something only where logits are far from uniform.
    assert case.logits.std() > 0.5


@pytest.mark.parametrize("start", STARTS)
def test_splice_equals_full_prefill(case: Case, start: int) -> None:
    rest = tokens()[PREFIX:]
    cache = with_segments(case.positions, case.segment, start)
    logits = feed(case.model, cache, rest, start + PREFIX)
    assert distance(logits, case.logits[PREFIX:]) < TOLERANCE
    if start == STARTS[-1]:  # the farthest move, from which answers differ first
        cache = with_segments(case.positions, case.segment, start)
        assert greedy(case.model, cache, rest, start + PREFIX) == case.answer


def test_wrong_position_is_noticed(case: Case) -> None:
    """The test of the tests: keys that stand elsewhere must change the logits visibly."""
    if not case.family.rotary:
        pytest.skip("its cache carries no positions")
    cache = with_segments(case.positions, case.segment, 7)
    logits = feed(case.model, cache, tokens()[PREFIX:], PREFIX)
    assert distance(logits, case.logits[PREFIX:]) > 50 * TOLERANCE


def test_after_ordinary_tokens(case: Case) -> None:
    """Tokens that the model cached itself, then a segment encoded with them as context."""
    ids, before = tokens(), 8
    segment = encode(
        case.model, case.positions, ids[:PREFIX], range(before, PREFIX), fingerprint=FINGERPRINT
    )
    assert segment.token_ids.tolist() == ids[before:PREFIX]

    def filled() -> DynamicCache:
        cache = new_cache()
        feed(case.model, cache, ids[:before], 0)
        inject(cache, case.positions, [segment], start=before, fingerprint=FINGERPRINT)
        return cache

    logits = feed(case.model, filled(), ids[PREFIX:], PREFIX)
    assert distance(logits, case.logits[PREFIX:]) < TOLERANCE
    assert greedy(case.model, filled(), ids[PREFIX:], PREFIX) == case.answer


def test_what_was_read_lately_is_not_read_again(case: Case) -> None:
    ids, prefixes = tokens(), PrefixCache(2**20)
    other = [*ids[:PREFIX], *tokens(9, seed=4)]
    cache = new_cache()
    feed(case.model, cache, other, 0)
    prefixes.insert(other, cache)
    before = [pair[0].clone() for pair in read_layers(cache)]
    for _ in range(2):  # the second time, the first answer must have left it as it was
        begun, known = prefixes.fork(ids)
        assert known == begun.get_seq_length() == PREFIX
        assert greedy(case.model, begun, ids[PREFIX:], PREFIX) == case.answer
        begun, _ = prefixes.fork(ids)
        logits = feed(case.model, begun, ids[PREFIX:], PREFIX)
        assert distance(logits, case.logits[PREFIX:]) < TOLERANCE
    assert all(map(torch.equal, before, (pair[0] for pair in read_layers(cache))))


def test_a_trace_that_was_read_already_is_encoded_from_what_is_there(case: Case) -> None:
    ids, prefixes, passes = tokens(), PrefixCache(2**20), 0
    cache = new_cache()
    feed(case.model, cache, ids[:PREFIX], 0)
    prefixes.insert(ids[:PREFIX], cache)

    def count(_: object, arguments: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal passes
        passes += kwargs["input_ids"].shape[1]

    begun, _ = prefixes.fork(ids[:PREFIX])
    with case.model.register_forward_pre_hook(count, with_kwargs=True):
        (live,) = encode_rows(
            case.model,
            case.positions,
            [(ids[:PREFIX], range(4, 20))],
            begun,
            fingerprint=FINGERPRINT,
            infos=[{}],
            backgrounds=[0],
        )
    assert passes == 1, "the last token, whose logits a prompt would need"
    again = encode(case.model, case.positions, ids[:PREFIX], range(4, 20), fingerprint=FINGERPRINT)
    assert torch.equal(live.token_ids, again.token_ids)
    for mine, theirs in zip(live.slots, again.slots, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert distance(one, other) < TOLERANCE


@pytest.mark.parametrize(("alike", "at_once"), [(0, 512), (6, 512), (6, 4)])
def test_encoding_together_is_encoding_alone(
    case: Case, alike: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of several lengths, with and without a beginning that they share, read in parts."""
    monkeypatch.setattr("lag_integrations.kv.forward._AT_ONCE_BEHIND", at_once)
    begins = tokens()[:alike]
    rows = [
        ([*begins, *tokens(length, seed=length)], [alike, alike + 2, alike + length - 1])
        for length in (3, 11, 20)
    ]
    cache = new_cache()
    if alike:
        feed(case.model, cache, begins, 0)
    together = encode_rows(
        case.model,
        case.positions,
        rows,
        cache,
        fingerprint=FINGERPRINT,
        infos=[{}] * 3,
        backgrounds=[0, 1, 2],
    )
    assert [segment.background for segment in together] == [0, 1, 2]
    for (ids, keep), segment in zip(rows, together, strict=True):
        alone = encode(case.model, case.positions, ids, keep, fingerprint=FINGERPRINT)
        assert torch.equal(segment.token_ids, alone.token_ids)
        for mine, theirs in zip(segment.slots, alone.slots, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                assert distance(one, other) < TOLERANCE * max(1, other.abs().max().item())


def test_two_segments_in_other_order(case: Case) -> None:
    """Each encoded alone and injected as B, A: as if computed alone, but at those positions."""
    first, second = tokens(11, seed=2), tokens(14, seed=3)
    segments = [
        encode(case.model, case.positions, ids, range(len(ids)), fingerprint=FINGERPRINT)
        for ids in (second, first)
    ]
    cache = new_cache()
    end = inject(cache, case.positions, segments, start=0, fingerprint=FINGERPRINT)
    assert end == len(first) + len(second)

    expected = new_cache()
    alone = new_cache(), new_cache()
    feed(case.model, alone[0], second, 0)
    feed(case.model, alone[1], first, len(second))
    for layer, pairs in enumerate(zip(*map(read_layers, alone), strict=True)):
        slots = tuple(torch.cat([pair[slot] for pair in pairs], dim=2) for slot in (0, 1))
        append_layer(expected, layer, (slots[0], slots[1]))

    for actual_pair, expected_pair in zip(read_layers(cache), read_layers(expected), strict=True):
        for slot in (0, 1):
            scale = expected_pair[slot].abs().max().item()
            assert distance(actual_pair[slot], expected_pair[slot]) < TOLERANCE * scale
    rest = tokens(12, seed=4)
    logits = feed(case.model, cache, rest, end)
    assert distance(logits, feed(case.model, expected, rest, end)) < TOLERANCE


def test_attention_temperature_scales_deviations_of_keys_and_nothing_else(case: Case) -> None:
    plain, latents = case.positions, case.model.config.get_text_config()
    sharper = new_cache()
    inject(sharper, plain, [case.segment], start=7, fingerprint=FINGERPRINT, temperature=0.5)
    halves = []
    for group, (keys, values) in zip(plain.groups, case.segment.slots, strict=True):
        mean = keys.mean(2, keepdim=True) if group.has_keys else 0.0
        halves.append((2 * keys - mean if group.has_keys else keys, values))
    expected = replace(case.segment, slots=tuple(halves))
    pairs = zip(read_layers(sharper), read_layers(with_segments(plain, expected, 7)), strict=True)
    for (keys, values), (other_keys, other_values) in pairs:
        assert torch.equal(values, other_values)
        assert distance(keys, other_keys) < TOLERANCE
    has_latents = getattr(latents, "kv_lora_rank", None) is not None
    assert has_latents != all(group.has_keys for group in plain.groups)


def test_temperature_1_changes_no_bit(case: Case) -> None:
    cache = new_cache()
    inject(cache, case.positions, [case.segment], start=7, fingerprint=FINGERPRINT, temperature=1.0)
    plain = read_layers(with_segments(case.positions, case.segment, 7))
    for pair, before in zip(read_layers(cache), plain, strict=True):
        assert all(map(torch.equal, pair, before))


def test_file_round_trip(case: Case) -> None:
    key = SegmentKey("log", FINGERPRINT, "whole_trace", "native")
    data = dump_segment(case.segment, key)
    read = load_segment(data, key, sha256_hex(data))
    assert torch.equal(read.token_ids, case.segment.token_ids)
    for pair, stored in zip(read.slots, case.segment.slots, strict=True):
        assert all(torch.equal(*slots) for slots in zip(pair, stored, strict=True))
    logits = feed(case.model, with_segments(case.positions, read, 5), tokens()[PREFIX:], 5 + PREFIX)
    assert distance(logits, case.logits[PREFIX:]) < TOLERANCE


def test_segment_is_never_changed_or_shared(case: Case) -> None:
    stored = [[slot.clone() for slot in pair] for pair in case.segment.slots]
    caches = [with_segments(case.positions, case.segment, 0) for _ in range(2)]
    storages = [
        {slot.untyped_storage().data_ptr() for pair in pairs for slot in pair}
        for pairs in (case.segment.slots, *map(read_layers, caches))
    ]
    assert not storages[0] & storages[1]
    assert not storages[0] & storages[2]
    assert not storages[1] & storages[2]

    # generate() wants all ids and skips those that the cache holds. Without use_cache=True a model
    # whose config says otherwise (MPT) would repeat the cached tokens.
    output = case.model.generate(
        torch.tensor([tokens()]),
        past_key_values=caches[0],
        use_cache=True,
        max_new_tokens=16,
        do_sample=False,
    )
    assert output[0, TOTAL:].tolist() == case.answer
    for pair in read_layers(caches[0]):
        for slot in pair:
            slot.fill_(7.0)
    for pair, before in zip(case.segment.slots, stored, strict=True):
        assert all(torch.equal(*slots) for slots in zip(pair, before, strict=True))
    logits = feed(case.model, caches[1], tokens()[PREFIX:], PREFIX)
    assert distance(logits, case.logits[PREFIX:]) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_bfloat16(family: Family) -> None:
    """On average within 5 % of the logits' spread.

    That is what these sharp random models make of bf16 rounding by themselves: run as a whole at
    other positions, without any splice, they differ as much (see ``python -m tests.kv.families``).
    Single logits differ more where rounding flips the choice of an expert.
    """
    model = load(family, torch.bfloat16)
    positions = probe(model)
    assert positions.window == family.window
    assert whole_prefix(model, positions).slots[0][0].dtype == torch.bfloat16
    spread = full_logits(model, tokens()).std().item()
    for difference in differences(model, positions):
        assert difference.abs().mean().item() < 5e-2 * spread


def quantized() -> Iterator[object]:
    """Each family with a scheme; both schemes replace the same layers of it."""
    schemes = ("int8", "int4")
    for number, family in enumerate(FAMILIES):
        for scheme in schemes if family.name in BOTH_SCHEMES else (schemes[number % 2],):
            yield pytest.param(family, scheme, id=f"{family}-{scheme}")


@pytest.mark.parametrize(("family", "scheme"), quantized())
def test_quantized_weights(family: Family, scheme: Quantization) -> None:
    """As near as with bf16: what is multiplied with quantised weights is bf16."""
    model = load(family)
    quantize(model, scheme)
    positions = probe(model)
    assert positions.window == family.window
    spread = full_logits(model, tokens()).std().item()
    for difference in differences(model, positions):
        assert difference.abs().mean().item() < 5e-2 * spread

"""Sharper attention to a segment stays attention to what it was, whatever keys have in common.

Qwen2's keys carry a constant part of up to 60 times their deviations. Here tiny models of each kind
of rotation are given such a part, and their attention to a segment is looked at.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lag_integrations.kv.cache import new_cache, read_layers
from lag_integrations.kv.encode import encode
from lag_integrations.kv.inject import inject
from lag_integrations.kv.position_scheme import Positions, sharpen
from lag_integrations.kv.probe import probe
from lag_integrations.kv.segment import Segment
from tests.kv.families import FINGERPRINT, PREFIX, build, feed, rope, tokens, two_ropes

BEFORE = 8
FARTHEST = {0.8: 0.15, 0.9: 0.08, 1.15: 0.08}
"""By temperature, how far the share of attention that a segment gets may be from that at
temperature 1, in the mean over layers, heads and tokens. Dividing the whole keys by 0.8 moves it by
0.22 to 0.32. Sharper attention alone moves it a little: a spread raises the sum of exponentials."""
NORMALISED = 0.07
"""Of that, what is allowed where keys are normalised, so that their common part stays small."""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "half": ("llama", {"attention_bias": True}),
    "half, biases of its own": ("qwen2", {}),
    "half of the first dimensions": ("phi", rope("default", partial_rotary_factor=0.5)),
    "interleaved": ("cohere", {"attention_bias": True, "logit_scale": 0.5}),
    "interleaved, first dimensions": (
        "glm",
        {"attention_bias": True} | rope("default", partial_rotary_factor=0.5),
    ),
    "two bases": (
        "gemma3_text",
        {"attention_bias": True, "query_pre_attn_scalar": 16} | two_ropes(),
    ),
    "not in every layer": ("smollm3", {"attention_bias": True, "no_rope_layers": [1, 0, 1]}),
    "none (ALiBi)": ("bloom", {"n_layer": 3, "n_head": 4}),
}


def biased(kind: str, size: float) -> PreTrainedModel:
    """A tiny model of a kind whose keys all have a large part in common."""
    model = build(*KINDS[kind])
    model.set_attn_implementation("eager")
    generator = torch.Generator().manual_seed(5)
    found = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module.bias is None:
            continue
        bias = module.bias.data
        if name.endswith("k_proj"):
            bias.copy_(size * torch.randn(bias.shape, generator=generator))
        elif name.endswith("query_key_value"):  # [heads, 3, head size]
            keys = bias.view(4, 3, -1)[:, 1]
            keys.copy_(size * torch.randn(keys.shape, generator=generator))
        else:
            continue
        found += 1
    assert found == model.config.num_hidden_layers
    return model


def encoded(model: PreTrainedModel, positions: Positions, background: int) -> Segment:
    ids, keep = tokens()[:PREFIX], range(PREFIX)
    return encode(model, positions, ids, keep, fingerprint=FINGERPRINT, background=background)


def attention(model: PreTrainedModel, temperature: float, background: int) -> torch.Tensor:
    """What share of later tokens' attention a segment gets, ``[layers, heads, tokens]``."""
    ids, positions = tokens(), probe(model)
    segment = encoded(model, positions, background)
    cache = new_cache()
    feed(model, cache, tokens(BEFORE, seed=4), 0)
    end = inject(
        cache,
        positions,
        [segment],
        start=BEFORE,
        fingerprint=FINGERPRINT,
        temperature=temperature,
    )
    rest = torch.tensor([ids[PREFIX:]])
    with torch.no_grad():
        given = model(
            input_ids=rest,
            attention_mask=torch.ones(1, end + rest.shape[1], dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
            output_attentions=True,
        ).attentions
    return torch.stack([one[0, :, :, BEFORE:end].sum(-1) for one in given])


@pytest.mark.parametrize("background", [0, PREFIX // 2])
@pytest.mark.parametrize("temperature", FARTHEST)
@pytest.mark.parametrize("kind", KINDS)
def test_a_segment_gets_about_the_attention_that_it_gets_at_temperature_1(
    kind, temperature, background
):
    model = biased(kind, 8.0)
    farthest = FARTHEST[temperature] * (NORMALISED if kind == "two bases" else 1)
    plain = attention(model, 1.0, background)
    sharper = attention(model, temperature, background)
    assert 0.1 < plain.mean() < 0.95
    assert not torch.equal(sharper, plain)
    assert (sharper - plain).abs().mean() < farthest


def test_deviations_from_the_mean_are_scaled():
    keys = torch.randn(2, 3, 20, 8) + 100 * torch.randn(2, 3, 1, 8)
    mean, sharper = keys.mean(2, keepdim=True), sharpen(keys, 0.5)
    torch.testing.assert_close(sharper.mean(2, keepdim=True), mean)
    torch.testing.assert_close(sharper - mean, 2 * (keys - mean), atol=1e-4, rtol=1e-4)
    partly = sharpen(keys, 0.5, background=9)
    assert torch.equal(partly[:, :, 9:], sharper[:, :, 9:])
    flatter = sharpen(keys, 2.0)
    assert torch.equal(partly[:, :, :9], flatter[:, :, :9])
    assert sharpen(keys.bfloat16(), 0.5).dtype == torch.float32


def test_what_led_to_the_answer_gets_the_inverse():
    model = biased("half, biases of its own", 8.0)
    positions = probe(model)

    def keys(temperature: float, background: int) -> list[torch.Tensor]:
        segment = encoded(model, positions, background).to(torch.device("cpu"))
        cache = new_cache()
        inject(
            cache,
            positions,
            [segment, segment],
            start=5,
            fingerprint=FINGERPRINT,
            temperature=temperature,
        )
        return [layer[0][0] for layer in read_layers(cache)]

    before = torch.arange(2 * PREFIX) % PREFIX < 9
    of = zip(keys(0.8, 9), keys(0.8, 0), keys(1 / 0.8, 0), keys(1.0, 9), keys(1.0, 0), strict=True)
    for both, sharper, flatter, *plain in of:
        assert torch.equal(both[:, ~before], sharper[:, ~before])
        torch.testing.assert_close(both[:, before], flatter[:, before])
        assert torch.equal(*plain)

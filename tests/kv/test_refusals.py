"""Models whose cache cannot be moved are refused by cause; windows end where moving does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, T5Config

from lag_integrations.errors import ContextWindowError, UnsupportedModelError
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import encode
from lag_integrations.kv.inject import inject
from lag_integrations.kv.probe import probe
from tests.kv.families import (
    EXPERTS,
    FAMILIES,
    FINGERPRINT,
    MLA,
    Family,
    build,
    load,
    rope,
    tokens,
    whole_prefix,
)

BY_NAME = {family.name: family for family in FAMILIES}
RECURRENT = "recurrent or linear-attention"

REFUSED: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("gpt2", {}, "learned absolute positions|adds absolute position embeddings"),
    ("opt", {"word_embed_proj_dim": 64, "ffn_dim": 96}, "absolute position"),
    ("gptj", {"rotary_dim": 8}, "no known rotary embedding explains"),
    ("mamba", {"state_size": 4}, RECURRENT),
    (
        "mamba2",
        {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1},
        RECURRENT,
    ),
    (
        "qwen3_next",
        EXPERTS
        | {
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 32,
        },
        RECURRENT,
    ),
    (
        "lfm2",
        {"layer_types": ["conv", "conv", "full_attention"], "block_multiple_of": 8},
        RECURRENT,
    ),
    (
        "falcon_h1",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
        RECURRENT,
    ),
    (
        "jamba",
        {
            "num_hidden_layers": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
        RECURRENT,
    ),
    (
        "llama4_text",
        {
            "num_local_experts": 2,
            "intermediate_size_mlp": 96,
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 1, 0],
        },
        "chunked attention",
    ),
    (
        "deepseek_v32",
        MLA
        | {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
            "head_dim": 8,
            "index_topk": 8,
            "index_head_dim": 16,
            "index_n_heads": 2,
        },
        "DynamicIndexedLayer",
    ),
)


@pytest.mark.parametrize(("model_type", "config", "cause"), REFUSED, ids=[r[0] for r in REFUSED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_refuses(model_type: str, config: dict[str, Any], cause: str, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    model = build(model_type, config, dtype=dtype)
    with pytest.raises(UnsupportedModelError, match=cause) as caught:
        probe(model)
    assert type(model).__name__ in str(caught.value)


def test_refuses_encoder_decoder() -> None:
    config = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        probe(model)


def test_refuses_rotary_model_that_takes_no_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count positions itself, so a moved key could not be seen, nor be used."""
    model = load(BY_NAME["llama"])
    forward = model.forward

    def without_positions(
        input_ids: Any, past_key_values: Any = None, use_cache: Any = None
    ) -> Any:
        return forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", without_positions)
    with pytest.raises(UnsupportedModelError, match="takes no position_ids"):
        probe(model)


def test_refuses_query_scale_without_a_stated_limit() -> None:
    """Ministral 3's query scale, with a step before every stated window."""
    config = BY_NAME["ministral3"].config
    model = build("ministral3", config | {"max_position_embeddings": 2048})
    model.config.rope_parameters["original_max_position_embeddings"] = 50
    with pytest.raises(UnsupportedModelError, match="do not move rigidly"):
        probe(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["phi3-longrope", "ministral3"])
def test_window_ends_where_positions_stop_being_relative(name: str, dtype: torch.dtype) -> None:
    family = BY_NAME[name]
    positions = probe(load(family, dtype))
    assert positions.window == 1200 == family.window


def test_longrope_with_nearly_equal_factors_is_noticed() -> None:
    """Real short and long factors differ by a few percent in the fast frequencies."""
    factors = rope(
        "longrope",
        short_factor=[1.0] * 8,
        long_factor=[1.05, *[1.0] * 7],
        original_max_position_embeddings=1200,
    )
    family = replace(BY_NAME["phi3-longrope"], config=BY_NAME["phi3-longrope"].config | factors)
    for dtype in (torch.float32, torch.bfloat16):
        assert probe(load(family, dtype)).window == 1200


def test_window_is_enforced() -> None:
    model = load(Family("short", "llama", {"max_position_embeddings": 100}))
    positions = probe(model)
    assert positions.window == 100
    segment = whole_prefix(model, positions)
    assert inject(new_cache(), positions, [segment], start=76, fingerprint=FINGERPRINT) == 100
    with pytest.raises(ContextWindowError, match="usable window of 100"):
        inject(new_cache(), positions, [segment], start=77, fingerprint=FINGERPRINT)
    with pytest.raises(ContextWindowError, match="usable window of 100"):
        encode(model, positions, tokens(101), [0], fingerprint=FINGERPRINT)


def test_probe_leaves_the_model_as_it_was() -> None:
    model: PreTrainedModel = load(BY_NAME["llama-dynamic"])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    probe(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])

"""Tiny random-weight models of many architectures, and how to run them with a filled cache.

``python -m tests.kv.families`` measures all of them and prints the table of docs and reports.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import encode
from lag_integrations.kv.inject import inject
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.probe import probe
from lag_integrations.kv.rope import Kernel
from lag_integrations.kv.segment import Segment

VOCABULARY = 128
WINDOW = 2048
PREFIX, TOTAL = 24, 40
"""Tokens of a segment, and of the segment with what follows it."""
STARTS = (0, 1, 997)
FINGERPRINT = "x"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": WINDOW,
    # Far above 0.02, so that attention is sharp and logits spread over several units.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""Passed as far as a config knows them; a family overrides what it must."""

MLA: dict[str, Any] = {
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Family:
    """One architecture with one position scheme.

    Attributes:
        name: Test id.
        model_type: As in transformers.
        config: Overrides of `COMMON`.
        drop: Keys of `COMMON` not to pass.
        rotary: Whether cached keys carry a position at all (ALiBi models carry none).
        window: The usable window that the probe must find.
        seed: Of the weights; for experts, one with which bf16 rounding rarely flips the routing.
    """

    name: str
    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    rotary: bool = True
    window: int = WINDOW
    seed: int = 0

    def __str__(self) -> str:
        return self.name


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """Config overrides for a rope variant."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **parameters}}


def two_ropes(**full: Any) -> dict[str, Any]:
    """Two rope bases, sliding and full layers, and a window smaller than the test sequence."""
    return {
        "layer_types": [SLIDING, SLIDING, FULL],
        "sliding_window": 8,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
            FULL: {"rope_type": "default", "rope_theta": 1000000.0, **full},
        },
    }


EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MIXED: dict[str, Any] = {"layer_types": [SLIDING, SLIDING, FULL], "sliding_window": 8}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}

FAMILIES: tuple[Family, ...] = (
    Family("llama", "llama"),
    Family("llama-linear", "llama", rope("linear", factor=4.0)),
    Family("llama-dynamic", "llama", rope("dynamic", factor=2.0)),
    Family("llama-yarn", "llama", rope("yarn", **YARN)),
    Family("llama-llama3", "llama", rope("llama3", **LLAMA3)),
    Family("mistral-sliding", "mistral", {"sliding_window": 8}),
    Family("ministral", "ministral", MIXED),
    Family(
        "ministral3",
        "ministral3",
        rope("yarn", factor=4.0, original_max_position_embeddings=1200, llama_4_scaling_beta=0.1),
        window=1200,
    ),
    Family("mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, seed=2),
    Family("qwen2", "qwen2"),
    Family("qwen2_moe", "qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 32}),
    Family("qwen3", "qwen3"),
    Family("qwen3_moe", "qwen3_moe", EXPERTS, seed=3),
    Family("gemma", "gemma"),
    Family("gemma2", "gemma2", MIXED | {"query_pre_attn_scalar": 16}),
    Family("gemma3", "gemma3_text", two_ropes() | {"query_pre_attn_scalar": 16}),
    Family(
        "gemma3n",
        "gemma3n_text",
        two_ropes()
        | {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [96] * 4,
        },
    ),
    Family(
        "gemma4",
        "gemma4_text",
        two_ropes(rope_type="proportional", partial_rotary_factor=0.25)
        | {
            "num_hidden_layers": 4,
            "layer_types": [SLIDING, FULL, SLIDING, FULL],
            "num_kv_shared_layers": 2,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
        seed=1,
    ),
    Family("phi", "phi", rope("default", partial_rotary_factor=0.5)),
    Family("phi3", "phi3"),
    Family(
        "phi3-longrope",
        "phi3",
        {"original_max_position_embeddings": 1200}
        | rope(
            "longrope",
            short_factor=[1.0 + 0.1 * i for i in range(8)],
            long_factor=[2.0 + 0.5 * i for i in range(8)],
            original_max_position_embeddings=1200,
        ),
        window=1200,
    ),
    Family("phimoe", "phimoe", {"num_local_experts": 4}, seed=4),
    Family("gpt_neox", "gpt_neox", rope("default", partial_rotary_factor=0.25)),
    Family("gpt_neox_japanese", "gpt_neox_japanese", {"intermediate_multiple_size": 2}),
    Family("stablelm", "stablelm", rope("default", partial_rotary_factor=0.25)),
    Family("cohere", "cohere", {"logit_scale": 0.5}),
    Family("cohere2", "cohere2", MIXED | {"logit_scale": 0.5}),
    Family("glm", "glm", rope("default", partial_rotary_factor=0.5)),
    Family("glm4", "glm4", rope("default", partial_rotary_factor=0.5)),
    Family(
        "glm4_moe",
        "glm4_moe",
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        | rope("default", partial_rotary_factor=0.5),
    ),
    Family("olmo", "olmo"),
    Family("olmo2", "olmo2"),
    Family("olmo3", "olmo3", two_ropes(rope_type="yarn", **YARN)),
    Family("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, seed=2),
    Family("starcoder2", "starcoder2"),
    Family("granite", "granite", {"attention_multiplier": 0.25}),
    Family(
        "granitemoe", "granitemoe", {"num_local_experts": 4, "attention_multiplier": 0.25}, seed=9
    ),
    Family("exaone4", "exaone4", MIXED),
    Family("smollm3", "smollm3", {"no_rope_layers": [1, 0, 1]}),
    Family(
        "gpt_oss",
        "gpt_oss",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
        | rope("yarn", truncate=False, **YARN),
        seed=8,
    ),
    Family("apertus", "apertus", rope("llama3", **LLAMA3)),
    Family("falcon", "falcon", {"multi_query": True}),
    Family("falcon-new", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Family("falcon-alibi", "falcon", {"alibi": True}, rotary=False),
    Family("bloom", "bloom", {"n_layer": 3, "n_head": 4}, rotary=False),
    Family(
        "mpt",
        "mpt",
        {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": WINDOW},
        drop=("hidden_size", "num_hidden_layers", "num_attention_heads"),
        rotary=False,
    ),
    Family(
        "deepseek_v2",
        "deepseek_v2",
        MLA
        | {
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 8,
        },
    ),
    Family(
        "deepseek_v3",
        "deepseek_v3",
        MLA
        | {
            "first_k_dense_replace": 1,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "head_dim": 8,
        },
    ),
    Family("youtu", "youtu", MLA | {"head_dim": 8, "rope_interleave": True}),
    Family("persimmon", "persimmon", rope("default", partial_rotary_factor=0.5)),
    Family("helium", "helium"),
    Family("ernie4_5", "ernie4_5"),
    Family("nemotron", "nemotron", rope("default", partial_rotary_factor=0.5)),
    Family("seed_oss", "seed_oss"),
    Family("hunyuan_v1_dense", "hunyuan_v1_dense"),
    Family("arcee", "arcee"),
    Family("diffllama", "diffllama"),
    Family("nanochat", "nanochat"),
    Family("minimax_m2", "minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2}),
)


def build(
    model_type: str,
    overrides: dict[str, Any],
    drop: tuple[str, ...] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A tiny model of any type, with random weights."""
    kind = CONFIG_MAPPING[model_type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        known = inspect.signature(kind).parameters.keys() | kind.attribute_map.keys()
        common = {k: v for k, v in COMMON.items() if k in known and k not in drop}
        config = kind(**copy.deepcopy(common | overrides))
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        logging.set_verbosity(level)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def load(family: Family, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The family's model."""
    return build(family.model_type, family.config, family.drop, family.seed, dtype)


def tokens(count: int = TOTAL, seed: int = 1) -> list[int]:
    """Random token ids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


def full_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Logits ``[tokens, vocabulary]`` of an ordinary run without any cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def feed(
    model: PreTrainedModel, cache: DynamicCache, ids: list[int], position: int
) -> torch.Tensor:
    """Feed tokens after what a cache holds; the first stands at a given position."""
    past = cache.get_seq_length()
    extra = {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        extra["position_ids"] = torch.arange(position, position + len(ids))[None]
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, past + len(ids), dtype=torch.int64),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
    return result.logits[0].float()


def greedy(model: PreTrainedModel, cache: DynamicCache, ids: list[int], position: int) -> list[int]:
    """Feed tokens after what a cache holds, then the 16 likeliest next ones."""
    answer = [int(feed(model, cache, ids, position)[-1].argmax())]
    position += len(ids)
    while len(answer) < 16:
        answer.append(int(feed(model, cache, answer[-1:], position)[-1].argmax()))
        position += 1
    return answer


def whole_prefix(model: PreTrainedModel, positions: Positions) -> Segment:
    """A segment that keeps every token of the prefix."""
    ids = tokens()[:PREFIX]
    return encode(model, positions, ids, range(PREFIX), fingerprint=FINGERPRINT)


def with_segments(positions: Positions, segment: Segment, start: int) -> DynamicCache:
    """A cache that holds one segment only, from a given position on."""
    cache = new_cache()
    end = inject(cache, positions, [segment], start=start, fingerprint=FINGERPRINT)
    assert end == start + len(segment)
    return cache


def differences(model: PreTrainedModel, positions: Positions) -> list[torch.Tensor]:
    """Logits after a with_segments segment less those of a full run, for each start."""
    ids = tokens()
    expected = full_logits(model, ids)[PREFIX:]
    segment = whole_prefix(model, positions)
    return [
        feed(model, with_segments(positions, segment, start), ids[PREFIX:], start + PREFIX)
        - expected
        for start in STARTS
    ]


def moved_difference(model: PreTrainedModel) -> torch.Tensor:
    """What the model itself makes of other positions, without any splice: its own rounding."""
    ids = tokens()
    far = feed(model, new_cache(), ids, STARTS[-1])
    return (far - full_logits(model, ids))[PREFIX:]


def _short(kernel: Kernel) -> str:
    sign = "" if kernel.sign == 1 else ", reversed"
    return f"{kernel.pairing} {kernel.offset}+{kernel.width}{sign}"


def _main() -> None:
    torch.set_num_threads(1)
    print("| family | kernels (offset+width) | fp32 max | fp32 moved | bf16 mean | bf16 moved |")
    print("|---|---|---|---|---|---|")
    for family in FAMILIES:
        cells = [family.name]
        for dtype in (torch.float32, torch.bfloat16):
            model = load(family, dtype)
            positions = probe(model)
            spliced_by, moved_by = differences(model, positions), moved_difference(model)
            scale = full_logits(model, tokens()).std().item()
            if dtype == torch.float32:
                found = {_short(k) for g in positions.groups for k in g.kernels if k is not None}
                cells.append("; ".join(sorted(found)) or "none")
                figures = (max(d.abs().max().item() for d in spliced_by), moved_by.abs().max())
            else:
                mean = max(d.abs().mean().item() for d in spliced_by)
                figures = (mean / scale, moved_by.abs().mean() / scale)
            cells += [f"{float(figure):.1e}" for figure in figures]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    _main()

"""Attention to a cache whose keys and values several heads share (grouped queries)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import prefill

NAME = "lag_grouped_sdpa"
"""Under which transformers knows `grouped_sdpa`."""
_UNKNOWN = ("position_bias", "softcap", "cache")
"""Arguments that `grouped_sdpa` leaves to transformers' own function."""


def attend_in_groups(model: PreTrainedModel) -> bool:
    """Let a model on a CPU read shared keys and values where they are.

    Wherever there is a mask (a question behind injected segments), transformers' SDPA copies them
    for every head first: with 4,096 tokens, most of the time went there. Kernels of GPUs need the
    copies, so models elsewhere are left alone, as are those with another attention than SDPA, and
    those that say something else with it: some ask for ``sdpa`` by its name.

    Returns:
        Whether it does so now.
    """
    if model.device.type != "cpu" or getattr(model.config, "_attn_implementation", "") != "sdpa":
        return False
    AttentionInterface.register(NAME, grouped_sdpa)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    try:
        before = _masked_logits(model)
        model.set_attn_implementation(NAME)
        after = _masked_logits(model)
    except (TypeError, ValueError, RuntimeError, IndexError):
        before, after = torch.zeros(2), torch.ones(2)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.std())):
        model.set_attn_implementation("sdpa")
        return False
    return True


def _masked_logits(model: PreTrainedModel) -> torch.Tensor:
    """Return fp32 logits ``[vocabulary]`` after tokens that were read behind others."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = torch.tensor([(7 * place) % vocabulary for place in range(1, 13)])
    cache = new_cache()
    with torch.no_grad():
        prefill(model, tokens[:5], cache)
        return prefill(model, tokens[5:], cache).float()


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' SDPA does, without copies of keys and values.

    Args:
        module: The attention layer.
        query: ``[rows, heads, tokens, width]``.
        key: ``[rows, shared heads, slots, width]``.
        value: As `key`.
        attention_mask: ``[rows, 1 or heads, tokens, slots]``, bool or additive; None is causal.
        dropout: Of attention weights.
        scaling: Of the scores; by the width by default.
        **kwargs: What only some models ask for; transformers' own function answers these.

    Returns:
        ``[rows, tokens, heads, width]``, and no attention weights.
    """
    shared = getattr(module, "num_key_value_groups", 1) > 1
    if (
        attention_mask is None
        or not shared
        or query.shape[2] == 1
        or any(kwargs.get(name) is not None for name in _UNKNOWN)
    ):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return found
    attended = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=True,
    )
    return attended.transpose(1, 2).contiguous(), None

"""Attention as transformers computes it, for several sequences in one pass, and without copies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from lag_integrations.kv.cache import SharedPass, new_cache
from lag_integrations.kv.forward import prefill

SDPA, EAGER = "lag_sdpa", "lag_eager"
"""Under which transformers knows `sdpa` and `eager`."""
_UNKNOWN = ("position_bias", "softcap", "cache")
"""Arguments that `_in_groups` leaves to transformers' own function."""

Attended = tuple[torch.Tensor, torch.Tensor | None]
"""What was attended to, ``[rows, tokens, heads, width]``, and perhaps the weights."""


def use_own_attention(model: PreTrainedModel) -> bool:
    """Let a model attend by the functions of this module.

    Models with another attention than SDPA or transformers' eager one are left alone, as are those
    that say something else with it: some ask for ``sdpa`` by its name.

    Returns:
        Whether it does so now.
    """
    before = getattr(model.config, "_attn_implementation", "")
    if before not in ("sdpa", "eager"):
        return False
    AttentionInterface.register(SDPA, sdpa)
    AttentionMaskInterface.register(SDPA, sdpa_mask)
    AttentionInterface.register(EAGER, eager)
    AttentionMaskInterface.register(EAGER, eager_mask)
    try:
        expected = _masked_logits(model)
        model.set_attn_implementation(SDPA if before == "sdpa" else EAGER)
        found = _masked_logits(model)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        expected, found = torch.zeros(2), torch.ones(2)
    if not torch.allclose(expected, found, rtol=1e-3, atol=1e-3 * float(expected.std())):
        model.set_attn_implementation(before)
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


def sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | SharedPass,
    value: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> Attended:
    """Attend as transformers' SDPA does.

    Args:
        module: The attention layer.
        query: ``[rows, heads, tokens, width]``.
        key: ``[rows, shared heads, slots, width]``, or of several sequences theirs.
        value: As `key`.
        attention_mask: ``[rows, 1 or heads, tokens, slots]``, bool or additive; None is causal.
        **kwargs: Further arguments of ``sdpa_attention_forward``.
    """
    return _each(_in_groups, module, query, key, value, attention_mask, kwargs)


def eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | SharedPass,
    value: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> Attended:
    """Attend as the model's own module does; arguments are those of `sdpa`."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    return _each(own, module, query, key, value, attention_mask, kwargs)


def _each(
    attend: Callable[..., Attended],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | SharedPass,
    value: torch.Tensor | None,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> Attended:
    """Attend, sequence by sequence if several share the pass."""
    if not isinstance(key, SharedPass):
        return attend(module, query, key, value, mask, **kwargs)
    parts = [
        attend(module, its_query, keys, values, its_mask, **kwargs)[0]
        for its_query, (keys, values, its_mask) in zip(
            torch.split(query, key.widths, 2), key, strict=True
        )
    ]
    return torch.cat(parts, dim=1), None


def _in_groups(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> Attended:
    """Attend by transformers' function, on a CPU without copies of shared keys and values.

    Wherever there is a mask (a question behind injected segments), that function copies them for
    every head first: with 4,096 tokens, most of the time went there. Kernels of GPUs need the
    copies.
    """
    shared = getattr(module, "num_key_value_groups", 1) > 1
    if (
        attention_mask is None
        or not shared
        or query.shape[2] == 1
        or query.device.type != "cpu"
        or any(kwargs.get(name) is not None for name in _UNKNOWN)
    ):
        found: Attended = sdpa_attention_forward(
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

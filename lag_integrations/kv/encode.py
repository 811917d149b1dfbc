"""Token ids to segment: one forward pass over everything, of which only the kept tokens stay."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from transformers import DynamicCache, PreTrainedModel

from lag_integrations.errors import ContextWindowError
from lag_integrations.kv.cache import new_cache, read_layers
from lag_integrations.kv.positions import Positions
from lag_integrations.kv.segment import Segment


def encode(
    model: PreTrainedModel,
    positions: Positions,
    token_ids: Sequence[int],
    keep: Sequence[int],
    cache: DynamicCache | None = None,
    *,
    fingerprint: str,
    info: dict[str, str] | None = None,
) -> Segment:
    """Encode tokens in the context of all tokens, and keep some (LAG paper, section 3.1).

    Args:
        model: The model, in evaluation mode.
        positions: Its position scheme.
        token_ids: The whole rendered trace; at most ``positions.window`` tokens.
        keep: Indices into ``token_ids`` of the tokens to keep, ascending. Each has attended to all
            tokens before it, so its keys and values carry the context that is dropped.
        cache: Holds the first of them already; it then holds all. A new one by default.
        fingerprint: Identity of the model.
        info: Facts to store with the segment.

    Returns:
        The segment, in the model's dtype, on the model's device.

    Raises:
        ContextWindowError: There are more tokens than the model's usable window.
    """
    if len(token_ids) > positions.window:
        raise ContextWindowError(
            f"The trace has {len(token_ids)} tokens, more than the model's usable window of "
            f"{positions.window}; cut it before encoding."
        )
    ids = torch.tensor(list(token_ids), dtype=torch.int64)
    cache = new_cache() if cache is None else cache
    with torch.no_grad():
        prefill(model, ids[cache.get_seq_length() :], cache)
        layers = read_layers(cache)
        kept = torch.tensor(list(keep), dtype=torch.int64, device=model.device)
        slots = []
        for group in positions.groups:
            first, second = (
                torch.cat([layers[layer][slot].index_select(2, kept) for layer in group.layers])
                for slot in (0, 1)
            )
            slots.append(
                positions.strip(group, (first, second), kept, out_dtype=layers[0][0].dtype)
            )
    return Segment(ids[kept.cpu()], tuple(slots), fingerprint, info or {})


def prefill(model: PreTrainedModel, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Let the model read tokens (int64, ``[tokens]``) into a cache, after what it holds already.

    Returns:
        The logits after the last token, ``[vocabulary]``.
    """
    # Logits of every token would cost more than the layers of a small model.
    extra = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    output = model(
        input_ids=token_ids[None].to(model.device), past_key_values=cache, use_cache=True, **extra
    )
    logits: torch.Tensor = output.logits[0, -1]
    return logits


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward pass has an argument."""
    return argument in _arguments(model.forward.__func__)


@lru_cache
def _arguments(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)

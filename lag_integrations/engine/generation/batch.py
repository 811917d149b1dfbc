"""Several requests in one forward pass a token.

Each prompt is read on its own, since reading keeps the processor busy anyway and rows then need no
padding inside. The caches are stacked, padded on the left, and the answers grow together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from lag_integrations.engine.generation.sequence import SequenceState
from lag_integrations.kv.cache import keep_rows, new_cache, read_layers, stack
from lag_integrations.kv.encode import prefill, takes

_TOLERANCE = 0.02
"""Largest error of a padded row's logits that counts as none, in their standard deviations."""


Step = Callable[[Sequence[Sequence[int]], DynamicCache, torch.Tensor], torch.Tensor]


def decode_together(
    forward: Step,
    rows: Sequence[SequenceState],
    caches: Sequence[DynamicCache],
    wanted: Callable[[int], bool],
) -> None:
    """Finish the answers of rows whose first token was taken already.

    Args:
        forward: `step` of the model.
        rows: The rows; those that are finished are left alone.
        caches: What the model has read for each row: all but its ``pending_tokens`` token.
        wanted: Says of a row, by its index, whether anybody still waits for it.
    """
    going = [index for index, row in enumerate(rows) if not row.done]
    if not going:
        return
    cache = stack([caches[index] for index in going])
    mask = _mask(
        [caches[index].get_seq_length() for index in going], read_layers(cache)[0][0].device
    )
    while going:
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
        logits = forward([rows[index].pending_tokens for index in going], cache, mask)
        kept = []
        for place, index in enumerate(going):
            rows[index].advance(logits[place], fast_forward=False)
            if not rows[index].done and wanted(index):
                kept.append(place)
        if kept and len(kept) < len(going):
            keep_rows(cache, kept)
            mask = mask[kept]
        going = [going[place] for place in kept]


def can_decode_together(model: PreTrainedModel) -> bool:
    """Try whether a padded row gets the logits that it would get alone."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompts = [[(7 * place) % vocabulary for place in range(1, length)] for length in (5, 14)]
    try:
        alone, caches = [], []
        for prompt in prompts:
            ids = torch.tensor(prompt)
            alone.append(prefill(model, ids, new_cache()).float())
            cache = new_cache()
            prefill(model, ids[:-1], cache)
            caches.append(cache)
        mask = _mask([len(prompt) - 1 for prompt in prompts], model.device)
        mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        last = [[prompt[-1]] for prompt in prompts]
        together = step(model, last, stack(caches), mask).float()
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return all(
        bool((one - other).abs().max() <= _TOLERANCE * one.std() + 1e-4)
        for one, other in zip(alone, together, strict=True)
    )


def _mask(lengths: Sequence[int], device: torch.device) -> torch.Tensor:
    places = torch.arange(max(lengths), device=device)
    starts = torch.tensor([max(lengths) - length for length in lengths], device=device)
    return (places >= starts[:, None]).long()


def step(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    cache: DynamicCache,
    mask: torch.Tensor,
) -> torch.Tensor:
    """Return the logits ``[rows, vocabulary]`` after one more token a row.

    Args:
        model: The model.
        token_ids: One token a row.
        cache: What was read before, padded on the left.
        mask: int64 ``[rows, tokens]``, the new ones included: 0 for padding.
    """
    extra = {}
    if takes(model, "position_ids"):
        extra["position_ids"] = mask.sum(dim=1, keepdim=True) - 1
    tokens = torch.tensor([list(row) for row in token_ids], device=mask.device)
    output = model(
        input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True, **extra
    )
    logits: torch.Tensor = output.logits[:, -1]
    return logits

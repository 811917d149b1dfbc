"""Forward passes: tokens are read into caches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from lag_integrations.kv.cache import JointCache, new_cache

_AT_ONCE_BEHIND = 512
"""Tokens that a CPU reads at once behind others; with 4,096, 1.4 times as fast as all at once."""
_LARGEST, _MEAN = 0.02, 0.1
"""Errors of logits that count as none, in their standard deviations: of fp32 the largest one, of
other dtypes the mean one. Kernels of a GPU round otherwise for other numbers of rows: with bf16 the
largest error is then 0.02 to 0.2, the mean one below 0.06; a position off by one makes 0.12 or more
of it."""


@dataclass(frozen=True)
class Unread:
    """Tokens of one sequence that are read next.

    Attributes:
        token_ids: The tokens.
        cache: A cache of one row, with all that stands before them.
        logits: After how many of them, the last ones, logits are wanted.
    """

    token_ids: Sequence[int]
    cache: DynamicCache
    logits: int = 1


def prefill(model: PreTrainedModel, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Let the model read tokens (int64, ``[tokens]``) into a cache, after what it holds already.

    Returns:
        The logits after the last token, ``[vocabulary]``.
    """
    return read_rows(model, token_ids[None], cache)[0]


def read_rows(model: PreTrainedModel, token_ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Let the model read rows of tokens; return the logits ``[rows, vocabulary]`` after them."""
    # Logits of every token would cost more than the layers of a small model.
    extra = {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
    step = token_ids.shape[1]
    if model.device.type == "cpu" and cache.get_seq_length():
        # Behind a cache there is a mask, and what it hides is computed all the same: of 4,096
        # tokens read at once, nearly half.
        step = min(step, _AT_ONCE_BEHIND)
    for part in torch.split(token_ids.to(model.device), step, dim=1):
        output = model(input_ids=part, past_key_values=cache, use_cache=True, **extra)
    logits: torch.Tensor = output.logits[:, -1]
    return logits


def read_next(model: PreTrainedModel, unread: Unread) -> torch.Tensor:
    """Let the model read tokens of one sequence; return logits ``[unread.logits, vocabulary]``."""
    tokens = torch.tensor([list(unread.token_ids)], device=model.device)
    keep: dict[str, Any] = {}
    if takes(model, "logits_to_keep"):
        # By number, Gemma 4 would leave out rows, unless the attention is called ``sdpa``.
        last = torch.arange(tokens.shape[1], device=model.device)[-unread.logits :]
        keep["logits_to_keep"] = 1 if unread.logits == 1 else last
    output = model(input_ids=tokens, past_key_values=unread.cache, use_cache=True, **keep)
    logits: torch.Tensor = output.logits[0, -unread.logits :]
    return logits


def read_together(model: PreTrainedModel, rows: Sequence[Unread]) -> list[torch.Tensor]:
    """Let the model read tokens of several sequences in one pass.

    They follow each other in one row, so nothing is padded; each attends to its own cache.

    Returns:
        Of each sequence the logits ``[rows[…].logits, vocabulary]``.
    """
    if len(rows) == 1:
        return [read_next(model, rows[0])]
    config, widths = model.config.get_text_config(), [len(row.token_ids) for row in rows]
    masks, positions, end = [], [], 0
    wanted: list[int] = []
    for row, width in zip(rows, widths, strict=True):
        begin = row.cache.get_seq_length()
        place = torch.arange(begin, begin + width, device=model.device)[None]
        like = torch.empty(1, width, 1, dtype=model.dtype, device=model.device)
        masks.append(create_masks_for_generate(config, like, None, row.cache, place))
        positions.append(place)
        end += width
        wanted += range(end - row.logits, end)
    joint = JointCache(
        [row.cache for row in rows], widths, masks, getattr(config, "layer_types", None)
    )
    tokens = [token for row in rows for token in row.token_ids]
    indices = torch.tensor(wanted, device=model.device)
    keep = {"logits_to_keep": indices} if takes(model, "logits_to_keep") else {}
    output = model(
        input_ids=torch.tensor([tokens], device=model.device),
        position_ids=torch.cat(positions, dim=1),
        # Masks of four dimensions are taken as they are; attention has each sequence's own.
        attention_mask=torch.zeros(1, 1, 1, 1, device=model.device),
        past_key_values=joint,
        use_cache=True,
        **keep,
    )
    logits = output.logits[0] if keep else output.logits[0, indices]
    return list(logits.split([row.logits for row in rows]))


def can_read_together(model: PreTrainedModel) -> bool:
    """Try whether sequences that share a pass get the logits that they would get alone."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lengths = ((5, 1), (14, 3), (0, 9))
    try:
        alone, rows = [], []
        for known, new in lengths:
            ids = [(7 * place) % vocabulary for place in range(1, known + new + 1)]
            caches = new_cache(), new_cache()
            if known:
                for cache in caches:
                    prefill(model, torch.tensor(ids[:known]), cache)
            alone.append(read_next(model, Unread(ids[known:], caches[0])).float())
            rows.append(Unread(ids[known:], caches[1]))
        together = [logits.float() for logits in read_together(model, rows)]
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    return all(
        _alike(one, other, exact=model.dtype == torch.float32)
        for one, other in zip(alone, together, strict=True)
    )


def _alike(one: torch.Tensor, other: torch.Tensor, *, exact: bool) -> bool:
    apart, spread = (one - other).abs(), one.std()
    if exact:
        return bool(apart.max() <= _LARGEST * spread + 1e-4)
    return bool(apart.mean() <= _MEAN * spread)


def wait_until_computed(device: torch.device) -> None:
    """Wait for a GPU, which still computes when a pass returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Return whether the model's forward pass has an argument."""
    return argument in _arguments(model.forward.__func__)


@lru_cache
def _arguments(forward: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)

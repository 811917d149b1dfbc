"""The only file that touches the cache API of transformers.

Caches here are plain ``DynamicCache()`` objects. ``DynamicCache(config=…)``, which models make
for themselves, cuts sliding-window layers to ``window - 1`` tokens; a plain one keeps every token
and the attention mask does the windowing, so that any token can be selected, stored and injected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

Slots = tuple[torch.Tensor, torch.Tensor]
"""A layer's two tensors, each ``[batch, heads, tokens, dim]``. Keys and values, except for MLA."""


def new_cache(layers: Sequence[Slots] = ()) -> DynamicCache:
    """A cache that keeps every token of every layer.

    Args:
        layers: What it holds already. The tensors are not copied, and never changed: the cache
            appends by making new ones.
    """
    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        cache.layers.append(layer)
    return cache


def first_tokens(layers: Sequence[Slots], number: int) -> list[Slots]:
    """Views of the first tokens of layers."""
    return [(first[:, :, :number], second[:, :, :number]) for first, second in layers]


def read_layers(cache: DynamicCache) -> list[Slots]:
    """The filled layers of a cache, in order, without copying.

    Raises:
        TypeError: A layer holds something other than one key and one value tensor a token.
    """
    slots = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise TypeError(f"cache layer of type {type(layer).__name__}")
        slots.append((layer.keys, layer.values))
    return slots


def beginning(cache: DynamicCache, number: int) -> DynamicCache:
    """A copy of the first tokens of a cache."""
    layers = first_tokens(read_layers(cache), number)
    return new_cache([(first.clone(), second.clone()) for first, second in layers])


def append_layer(cache: DynamicCache, layer: int, slots: Slots) -> None:
    """Append tokens to one layer; the cache concatenates, so the given tensors are never kept."""
    cache.update(slots[0], slots[1], layer)


def stack(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Caches of one request each as the rows of one, padded with zeros on the left."""
    longest = max(cache.get_seq_length() for cache in caches)
    stacked = new_cache()
    for layer, pairs in enumerate(zip(*(read_layers(cache) for cache in caches), strict=True)):
        first, second = (
            torch.cat([_padded(pair[slot], longest) for pair in pairs]) for slot in (0, 1)
        )
        append_layer(stacked, layer, (first, second))
    return stacked


def keep_rows(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Drop all other rows of a cache."""
    cache.batch_select_indices(torch.tensor(list(rows), device=read_layers(cache)[0][0].device))


def _padded(slot: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(slot, (0, 0, length - slot.shape[2], 0))


def unsupported_layers(config: PreTrainedConfig) -> set[str]:
    """Names of the model's cache layer types that hold no plain keys and values."""
    # A dummy layer stores nothing: it reads the keys and values of an earlier layer (Gemma 3n, 4).
    supported = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
    return {type(layer).__name__ for layer in DynamicCache(config=config).layers} - supported

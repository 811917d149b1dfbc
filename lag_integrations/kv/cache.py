"""The only file that touches the cache API of transformers.

Caches here keep every token of every layer. ``DynamicCache(config=…)``, which models make for
themselves, cuts sliding-window layers to ``window - 1`` tokens; here the attention mask does the
windowing, so that any token can be selected, stored and injected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

LayerKV = tuple[torch.Tensor, torch.Tensor]
"""A layer's two tensors, each ``[batch, heads, tokens, dim]``. Keys and values, except for MLA."""

_GROWTH = 64
"""Least tokens for which there is room after a layer had to grow."""


class RoomyLayer(DynamicLayer):
    """A layer with room for more tokens, so that not all are copied when one comes.

    Args:
        room: Tokens for which there is room from the first on.
    """

    keys: Any
    values: Any

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self._room = room
        self._memory: LayerKV | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> LayerKV:
        """Append tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        if self._memory is None or end > self._memory[0].shape[2]:
            grown = 0 if begin == 0 else max(_GROWTH, begin // 4)
            memory = _memory((key_states, value_states), max(end + grown, self._room))
            for whole, held in zip(memory, (self.keys, self.values), strict=True):
                if begin:
                    whole[:, :, :begin] = held
            self._memory = memory
        for whole, new in zip(self._memory, (key_states, value_states), strict=True):
            whole[:, :, begin:end] = new
        self.keys, self.values = (whole[:, :, :end] for whole in self._memory)
        return self.keys, self.values

    def adopt(self, memory: LayerKV, filled: LayerKV) -> None:
        """Take over tensors, and what of them is the layer's: their first tokens."""
        self.dtype, self.device = filled[0].dtype, filled[0].device
        self.is_initialized = True
        self._memory = memory
        self.keys, self.values = filled

    def shorten(self, tokens: int) -> None:
        """Forget all but the first tokens; their place is written again."""
        if self.is_initialized and self.get_seq_length() > tokens:
            self.keys, self.values = (slot[:, :, :tokens] for slot in (self.keys, self.values))


class _RoomyCache(DynamicCache):
    def __init__(self, room: int, *, with_segments: bool) -> None:
        super().__init__()
        self.room = room
        self.layer_class_to_replicate = partial(RoomyLayer, 0 if with_segments else room)

    def layer(self, index: int) -> RoomyLayer:
        while len(self.layers) <= index:
            self.layers.append(self.layer_class_to_replicate())
        layer: RoomyLayer = self.layers[index]
        return layer


class SharedPass(list[tuple[torch.Tensor, torch.Tensor, Any]]):
    """What one layer's queries attend to in a pass that several sequences share.

    Of each sequence its keys, its values, and its mask as transformers makes it.

    Args:
        parts: As above.
        widths: How many of the pass's tokens are each sequence's, in order.
    """

    def __init__(
        self, parts: Sequence[tuple[torch.Tensor, torch.Tensor, Any]], widths: Sequence[int]
    ) -> None:
        super().__init__(parts)
        self.widths = list(widths)


class JointCache(DynamicCache):
    """The caches of several sequences whose next tokens are read as one row.

    Nothing is padded or copied: each sequence's keys and values stay in its own cache. A layer gets
    a `SharedPass` in place of keys; attention has to know it (`engine.attention`).

    Args:
        caches: A cache of one row each.
        widths: How many tokens of each are read, in order.
        masks: Of each, its mask, or its masks by the type of layer.
        layer_types: The type of each layer, where masks differ by it.
    """

    def __init__(
        self,
        caches: Sequence[DynamicCache],
        widths: Sequence[int],
        masks: Sequence[Any],
        layer_types: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self._caches, self._widths = list(caches), list(widths)
        self._masks, self._types = list(masks), list(layer_types or ())

    def update(  # type: ignore[override]
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[SharedPass, None]:
        """Append each sequence's tokens to its own cache."""
        parts = []
        keys, values = (torch.split(slot, self._widths, 2) for slot in (key_states, value_states))
        for cache, *new, mask in zip(self._caches, keys, values, self._masks, strict=True):
            held = cache.update(*new, layer_idx)
            its_own = mask[self._types[layer_idx]] if isinstance(mask, dict) else mask
            parts.append((*held, its_own))
        return SharedPass(parts, self._widths), None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest sequence."""
        return max(int(cache.get_seq_length(layer_idx)) for cache in self._caches)


def new_cache(
    layers: Sequence[LayerKV] = (), room: int = 0, *, with_segments: bool = False
) -> DynamicCache:
    """Return a cache that keeps every token of every layer.

    Args:
        layers: What it holds already. The tensors are never changed: they are copied when the
            first token comes.
        room: Tokens for which there is room from the first on.
        with_segments: Whether `make_room` is still to come: the room is made then.
    """
    cache = _RoomyCache(room, with_segments=with_segments)
    for index, (keys, values) in enumerate(layers):
        layer = cache.layer(index)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return cache


def first_tokens(layers: Sequence[LayerKV], number: int) -> list[LayerKV]:
    """Return views of the first tokens of layers."""
    return [(first[:, :, :number], second[:, :, :number]) for first, second in layers]


def read_layers(cache: DynamicCache) -> list[LayerKV]:
    """Return the filled layers of a cache, in order, without copying.

    What is appended later leaves these tensors as they are.

    Raises:
        TypeError: A layer holds something other than one key and one value tensor a token.
    """
    slots = []
    for layer in cache.layers:
        plain = type(layer) in (RoomyLayer, DynamicLayer)
        if not plain or layer.keys is None or layer.values is None:
            raise TypeError(f"cache layer of type {type(layer).__name__}")
        slots.append((layer.keys, layer.values))
    return slots


def nbytes(layers: Sequence[LayerKV]) -> int:
    """Return the bytes of memory behind the tensors of layers, room for more included."""
    memory = {
        slot.untyped_storage().data_ptr(): slot.untyped_storage().nbytes()
        for pair in layers
        for slot in pair
    }
    return sum(memory.values())


def beginning(cache: DynamicCache, number: int) -> DynamicCache:
    """Return a copy of the first tokens of a cache."""
    layers = first_tokens(read_layers(cache), number)
    return new_cache([(first.clone(), second.clone()) for first, second in layers])


def widen(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache of several rows, each of which holds what a cache of one row does."""
    return new_cache(
        [
            (first.expand(rows, -1, -1, -1), second.expand(rows, -1, -1, -1))
            for first, second in read_layers(cache)
        ]
    )


def shorten(cache: DynamicCache, tokens: int) -> None:
    """Forget all but the first tokens of a cache of `new_cache`."""
    for layer in cache.layers:
        layer.shorten(tokens)


def append_layer(cache: DynamicCache, layer: int, slots: LayerKV) -> None:
    """Append tokens to one layer; the given tensors are copied."""
    cache.update(slots[0], slots[1], layer)


def make_room(cache: DynamicCache, layers: Sequence[int], tokens: int, *, like: LayerKV) -> LayerKV:
    """Append tokens that are still to be written, to several layers at once.

    Args:
        cache: A cache of `new_cache`, of one row.
        layers: The layers, which hold equally many tokens.
        tokens: How many are appended.
        like: Two tensors ``[layers, heads, …, dim]`` of the shape, dtype and device that they have.

    Returns:
        Two tensors ``[layers, heads, tokens, dim]``, to be filled: they are the layers' own memory.
    """
    rows = [cache.layer(index) for index in layers]
    begin = rows[0].get_seq_length()
    memory = _memory(like, max(begin + tokens, cache.room))
    if begin:
        for row, layer in enumerate(rows):
            for whole, held in zip(memory, (layer.keys, layer.values), strict=True):
                whole[row, :, :begin] = held[0]
    filled = first_tokens([memory], begin + tokens)[0]
    parts = [torch.split(tensor, 1) for tensor in (*memory, *filled)]
    for layer, first, second, keys, values in zip(rows, *parts, strict=True):
        layer.adopt((first, second), (keys, values))
    return filled[0][:, :, begin:], filled[1][:, :, begin:]


def _memory(like: LayerKV, tokens: int) -> LayerKV:
    first, second = (
        slot.new_empty(slot.shape[0], slot.shape[1], tokens, slot.shape[3]) for slot in like
    )
    return first, second


def unsupported_layers(config: PreTrainedConfig) -> set[str]:
    """Return names of the model's cache layer types that hold no plain keys and values."""
    # A dummy layer stores nothing: it reads the keys and values of an earlier layer (Gemma 3n, 4).
    supported = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
    return {type(layer).__name__ for layer in DynamicCache(config=config).layers} - supported

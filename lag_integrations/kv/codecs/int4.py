"""Segments as 4-bit integers, two a byte: 15 steps between the extremes of 32 values."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs.base import Codec, narrow, require_finite
from lag_integrations.kv.codecs.scaled import SHARED_AXES, divisor, round_up

_GROUP = 32
"""Values that share a scale: 5 bits a value in all. The last group of an axis may be smaller."""


class Int4(Codec):
    """Asymmetric: a group's code 0 is its least value, code 15 its greatest (as in KIVI)."""

    @property
    def name(self) -> str:
        """``int4``."""
        return "int4"

    def encode(self, pair: LayerKV) -> dict[str, torch.Tensor]:
        """Return each slot's packed codes, and ``.low`` and ``.scale`` of each group."""
        tensors = {}
        for index, (slot, axis) in enumerate(zip(pair, SHARED_AXES, strict=True)):
            groups = _grouped(slot.float(), axis)
            inner = axis + 1
            low = -round_up(-groups.amin(inner))  # rounded down
            scale = round_up((groups.amax(inner) - low) / 15)
            require_finite(scale, self.name)  # NaN and infinity come through the extremes
            codes = (groups - low.unsqueeze(inner)).div_(divisor(scale).unsqueeze(inner)).round_()
            codes = codes.to(torch.uint8).flatten(axis, inner).narrow(axis, 0, slot.shape[axis])
            tensors[f"{index}"] = _pack(codes)
            tensors[f"{index}.low"] = low
            tensors[f"{index}.scale"] = scale
        return tensors

    def decode(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> LayerKV:
        """Return codes times scales plus the least values, in fp32."""
        # Both slots have the same tokens; the scales of the second one say how many.
        tokens = tensors["1.scale"].shape[2]
        slots = []
        for index, axis in enumerate(SHARED_AXES):
            values = _unpack(tensors[f"{index}"], tokens).float()
            values.mul_(_spread(tensors[f"{index}.scale"], axis, values.shape[axis]))
            values.add_(_spread(tensors[f"{index}.low"], axis, values.shape[axis]))
            slots.append(narrow(values, dtype))
        return slots[0], slots[1]


def _grouped(slot: torch.Tensor, axis: int) -> torch.Tensor:
    """Split an axis into (groups, 32); its last value fills up the last group."""
    size, shape = slot.shape[axis], slot.shape
    groups = -(-size // _GROUP)
    indices = torch.arange(groups * _GROUP, device=slot.device).clamp_(max=size - 1)
    filled = slot.index_select(axis, indices)
    return filled.reshape(*shape[:axis], groups, _GROUP, *shape[axis + 1 :])


def _spread(per_group: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Repeat what each group has for each of its values."""
    return per_group.repeat_interleave(_GROUP, axis).narrow(axis, 0, size)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Pack codes: the first half of the tokens in the low four bits, the second above."""
    # Halves of the tokens, not neighbouring channels: an odd dim then needs no padding.
    half = (codes.shape[2] + 1) // 2
    packed = codes[:, :, :half].clone()
    packed[:, :, : codes.shape[2] - half] |= codes[:, :, half:] << 4
    return packed


def _unpack(packed: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.cat([packed & 15, packed >> 4], dim=2).narrow(2, 0, tokens)

"""One scale for many values: what the codecs with integers or small floats have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch

from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs.base import Codec, narrow, require_finite

SHARED_AXES = (2, 3)
"""The axis along which values of the first and of the second slot share a scale.

Keys have a few channels that are large at every token: a channel of keys is alike along its tokens.
Values have no such channels, so a token of values is alike along its channels (KIVI, 2402.02750).
"""


def round_up(exact: torch.Tensor) -> torch.Tensor:
    """Return the least bf16 values that are not below given fp32 values.

    Scales are stored so, and what is quantised is quantised with the stored scale: never is a value
    beyond the largest code, and the rounding of the scale is no error of its own.
    """
    nearest = exact.to(torch.bfloat16)
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.float() < exact, above, nearest)


def divisor(scale: torch.Tensor) -> torch.Tensor:
    """Return a stored scale to divide by, in fp32; where it is 0, all values are 0."""
    return scale.float().masked_fill(scale == 0, 1)


class Scaled(Codec):
    """One code a value and one bf16 scale for each row along the shared axis."""

    @property
    @abstractmethod
    def largest(self) -> float:
        """The largest code, which the largest value of a row gets."""

    @abstractmethod
    def round(self, quotients: torch.Tensor) -> torch.Tensor:
        """Return the codes nearest to fp32 values within ±`largest`; these are overwritten."""

    def encode(self, pair: LayerKV) -> dict[str, torch.Tensor]:
        """Return each slot's codes, in its shape, and ``.scale``, 1 long on the shared axis."""
        tensors = {}
        for index, (slot, axis) in enumerate(zip(pair, SHARED_AXES, strict=True)):
            # There is no maximum of no tokens; their sum has the right shape, and is 0.
            reduce = torch.amax if slot.shape[axis] else torch.sum
            peak = reduce(slot.abs(), dim=axis, keepdim=True).float()
            scale = round_up(peak / self.largest)
            require_finite(scale, self.name)  # NaN and infinity come through the maximum
            tensors[f"{index}"] = self.round(slot.float() / divisor(scale))
            tensors[f"{index}.scale"] = scale
        return tensors

    def decode(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> LayerKV:
        """Return codes times scales, in fp32."""
        first, second = (
            narrow(tensors[f"{index}"].float().mul_(tensors[f"{index}.scale"]), dtype)
            for index in (0, 1)
        )
        return first, second

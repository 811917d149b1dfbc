"""Segments in a floating-point dtype: the model's own, or another one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lag_integrations.errors import EncodingError
from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs.base import Codec, narrow, require_finite


class Cast(Codec):
    """Every value as it is, in a given dtype.

    Args:
        name: Name of the codec.
        dtype: dtype in the file; the model's own if None.
    """

    def __init__(self, name: str, dtype: torch.dtype | None) -> None:
        self._name = name
        self._dtype = dtype

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    def encode(self, pair: LayerKV) -> dict[str, torch.Tensor]:
        """Return the two slots in the codec's dtype, as ``0`` and ``1``."""
        tensors = {}
        for index, slot in enumerate(pair):
            stored = slot if self._dtype is None else slot.to(self._dtype)
            if not stored.isfinite().all():
                require_finite(slot, self._name)  # else the slot is sound, and the cast is not
                raise EncodingError(
                    f"Some keys or values are beyond ±{torch.finfo(stored.dtype).max:.5g}, the "
                    f"range of the codec {self._name!r}; use 'bf16', which has the range of fp32."
                )
            tensors[str(index)] = stored
        return tensors

    def decode(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> LayerKV:
        """Return the tensors themselves where the dtype is the model's."""
        first, second = (
            stored if stored.dtype == dtype else narrow(stored.to(torch.float32, copy=True), dtype)
            for stored in (tensors["0"], tensors["1"])
        )
        return first, second

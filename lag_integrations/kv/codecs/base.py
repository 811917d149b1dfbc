"""What a codec is: the way in which one layer group's keys and values are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from lag_integrations.errors import EncodingError
from lag_integrations.kv.cache import LayerKV


class Codec(ABC):
    """Turns the two slots of a layer group into named tensors for a file, and back.

    What it stores of the first slot is named ``0`` or ``0.…``, of the second ``1`` or ``1.…``.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name under which segments are stored with it."""

    @abstractmethod
    def encode(self, pair: LayerKV) -> dict[str, torch.Tensor]:
        """Store a pair.

        Args:
            pair: Two tensors ``[layers, heads, tokens, dim]``, both with the same tokens; left as
                they are.

        Returns:
            The tensors to write; they may share memory with the pair.

        Raises:
            EncodingError: A value is NaN, infinite, or beyond what the codec can hold.
        """

    @abstractmethod
    def decode(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> LayerKV:
        """Return the pair that `encode` stored, as near as the codec keeps it.

        Args:
            tensors: What `encode` gave; may be used as they are, but are not changed.
            dtype: The model's dtype, which the pair had and gets again.
        """


def require_finite(tensor: torch.Tensor, codec: str) -> None:
    """Refuse a tensor with NaN or infinity in it.

    Raises:
        EncodingError: It has.
    """
    if not tensor.isfinite().all():
        raise EncodingError(
            f"The codec {codec!r} cannot store keys or values that are NaN, infinite or near the "
            "limits of fp32. A model that computes such overflows: load it in bfloat16 or float32."
        )


def narrow(decoded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Bring decoded fp32 values, which are overwritten, to the model's dtype.

    A value at the very edge of that dtype may have been rounded beyond it; it stays finite.
    """
    limit = torch.finfo(dtype).max
    return decoded.clamp_(-limit, limit).to(dtype)

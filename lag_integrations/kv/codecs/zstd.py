"""Lossless compression of what another codec stores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from lag_integrations.errors import StoreError
from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.codecs.base import Codec

SUFFIX = "+zstd"
_LIKE = ".like"


class Zstd(Codec):
    """Each tensor of another codec as one zstd frame of its byte planes.

    A byte plane is the first bytes of all elements, or all second ones…: signs and exponents are
    much alike and mantissas are noise, so that apart they compress better than mixed.

    Args:
        inner: The codec whose tensors are compressed.

    Raises:
        StoreError: The package ``zstandard`` is not installed.
    """

    def __init__(self, inner: Codec) -> None:
        try:
            import zstandard  # here: only those who use it need it
        except ImportError as error:
            raise StoreError(
                f"The codec {inner.name + SUFFIX!r} needs the package zstandard. "
                "Install it with: pip install 'lag_integrations[zstd]'"
            ) from error
        self._zstd = zstandard
        self._inner = inner

    @property
    def name(self) -> str:
        """The inner codec's, and ``+zstd``."""
        return self._inner.name + SUFFIX

    def encode(self, pair: LayerKV) -> dict[str, torch.Tensor]:
        """Compress each inner tensor to a frame (uint8); ``.like`` has its dtype and shape."""
        tensors = {}
        for name, tensor in self._inner.encode(pair).items():
            size = tensor.element_size()
            elements = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).view(-1, size)
            frame = self._zstd.compress(elements.numpy().T.tobytes())
            tensors[name] = torch.from_numpy(np.frombuffer(frame, dtype=np.uint8).copy())
            # Empty because its first axis is 0 long; the others are the tensor's.
            tensors[name + _LIKE] = torch.empty(0, *tensor.shape, dtype=tensor.dtype)
        return tensors

    def decode(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> LayerKV:
        """Return what the inner codec makes of the tensors it stored, bit for bit."""
        return self._inner.decode(
            {
                name: self._decompress(frame, tensors[name + _LIKE])
                for name, frame in tensors.items()
                if not name.endswith(_LIKE)
            },
            dtype,
        )

    def _decompress(self, frame: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        shape, size = like.shape[1:], like.element_size()
        data = frame.numpy().tobytes()
        # Asked first, so that a forged frame cannot claim all memory.
        if self._zstd.frame_content_size(data) != shape.numel() * size:
            raise ValueError("a compressed tensor has not the size that it should have")
        planes = np.frombuffer(self._zstd.decompress(data), dtype=np.uint8).reshape(size, -1)
        elements = torch.from_numpy(planes.T.copy())
        return elements.view(-1).view(like.dtype).view(shape)

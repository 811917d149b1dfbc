"""Linear layers and embeddings with 8 bits a weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from lag_integrations.engine.quantization.identity import identity
from lag_integrations.engine.quantization.processor import matmul_dtype

_LARGEST = 127
_KERNEL_ROWS = 16
"""Up to so many rows, the kernel that reads packed weights is faster than to unpack them first.
Measured with AVX2 and AVX-512 (docs/performance.md)."""


def fits(linear: nn.Linear) -> bool:
    """Return whether a layer has a shape that the kernel takes; with others it reads beyond."""
    return linear.in_features % 32 == 0


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each row of a matrix, symmetrically.

    Args:
        weight: ``[rows, columns]``, of any float dtype.

    Returns:
        int8 ``[rows, columns]``, and bf16 ``[rows]``, by which they are to be multiplied. The
        kernel wants bf16, so the integers are those that fit the rounded scales.
    """
    weight = weight.detach().float()
    scale = (weight.abs().amax(1) / _LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    integers = (weight / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return integers.to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8, with one scale for each output.

    Args:
        weight: int8 ``[out, in]``.
        scale: bf16 ``[out]``.
        bias: ``[out]``, or None.
    """

    identity: torch.Tensor
    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("identity", identity(weight))
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale)
        self.bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply ``[..., in]``; return ``[..., out]`` of the same dtype."""
        rows = inputs.reshape(-1, self.in_features)
        if len(rows) <= _KERNEL_ROWS:
            outputs: torch.Tensor = torch.ops.aten._weight_int8pack_mm(
                rows.bfloat16(), self.weight, self.scale
            ).to(inputs.dtype)
        else:
            dtype = matmul_dtype(inputs.dtype)
            outputs = functional.linear(rows.to(dtype), self.weight.to(dtype)).to(inputs.dtype)
            outputs = outputs * self.scale.to(inputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features)


class Int8Embedding(nn.Module):
    """An embedding whose rows are int8.

    Args:
        weight: int8 ``[tokens, width]``.
        scale: bf16 ``[tokens]``.
        dtype: Of what it returns.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self._dtype = dtype

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Look up ``[...]``; return ``[..., width]``."""
        rows = functional.embedding(token_ids, self.weight)
        return rows.to(self._dtype) * self.scale[token_ids].to(self._dtype)[..., None]

"""Linear layers with 4 bits a weight."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional

from lag_integrations.engine.quantization.identity import identity
from lag_integrations.engine.quantization.processor import matmul_dtype

GROUP = 32
"""Weights of an output that share a scale and a zero: as in the 4-bit formats of GGUF."""
_KERNEL_ROWS = 96
"""Up to so many rows, the kernel that reads packed weights is faster than to unpack them first.
Measured with AVX2 and AVX-512 (docs/performance.md)."""
_LEVELS = 15
_MIDDLE = 8  # the kernel computes (code - 8) * scale + zero
_WEIGHTS_AT_ONCE = 1 << 22  # so that quantising needs little memory
_TINY = torch.finfo(torch.bfloat16).tiny
_SAMPLE = 64
_LOSSLESS = 0.02
"""Error, relative to the size of the weights, up to which they are said to stand on a grid already:
that of rounded scales is 0.005, that of weights that stand on none is 0.06 and more."""
_Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def fits(linear: nn.Linear) -> bool:
    """Return whether a layer has a shape that the kernel takes."""
    return linear.in_features % GROUP == 0 and linear.out_features % 16 == 0


def is_lossless(weight: torch.Tensor) -> bool:
    """Return whether a matrix stands on a grid of 4 bits already, as if dequantised from one.

    Looked up in some of its rows: what was quantised as a whole was dequantised as a whole.
    """
    rows = _groups(weight[:: max(1, len(weight) // _SAMPLE)])
    return float(_search(rows)[2].sum() / rows.square().sum().clamp(min=_TINY)) < _LOSSLESS**2


def quantize_groups(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise each group of a matrix's rows, asymmetrically.

    If the matrix `is_lossless`, it keeps its values up to the rounding of the scales.

    Args:
        weight: ``[rows, columns]``, of any float dtype.

    Returns:
        uint8 ``[rows, columns]``, 0 to 15; and bf16 ``[columns / GROUP, rows, 2]``, of each group
        the scale and what stands for the code 8.
    """
    quantize = _search if is_lossless(weight) else _round
    codes, grids = [], []
    for rows in torch.split(weight, max(1, _WEIGHTS_AT_ONCE // weight.shape[1])):
        code, grid, _ = quantize(_groups(rows))
        codes.append(code.flatten(1))
        grids.append(grid)
    return torch.cat(codes), torch.cat(grids).transpose(0, 1).contiguous()


def _groups(weight: torch.Tensor) -> torch.Tensor:
    """Return fp32 ``[rows, columns / GROUP, GROUP]`` of ``[rows, columns]``."""
    return weight.detach().float().reshape(len(weight), -1, GROUP)


def _search(groups: torch.Tensor) -> _Quantized:
    """Quantise on the grid with the least error: a group may not use all levels of its own."""
    code, grid, error = _round(groups)
    for steps in range(_LEVELS - 1, 0, -1):
        left = (error > _LOSSLESS**2 * groups.square().sum(-1)).nonzero(as_tuple=True)
        if not len(left[0]):
            break
        code_, grid_, error_ = _round(groups[left], steps)
        better = error_ < error[left]
        left = tuple(place[better] for place in left)
        code[left], grid[left], error[left] = code_[better], grid_[better], error_[better]
    return code, grid, error


def _round(groups: torch.Tensor, steps: int = _LEVELS) -> _Quantized:
    """Round ``[..., GROUP]`` on the grid that ends at each group's extremes.

    Returns:
        The codes, uint8; ``[..., 2]`` bf16, the scales and zeros; ``[...]``, the squared errors.
    """
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / steps).clamp(min=_TINY).bfloat16()
    zero = (low + _MIDDLE * scale.float()).bfloat16()  # codes are those that fit rounded scales
    code = ((groups - zero.float()) / scale.float() + _MIDDLE).round_().clamp_(0, _LEVELS)
    error = (code - _MIDDLE).mul_(scale.float()).add_(zero.float()).sub_(groups).square_().sum(-1)
    return code.to(torch.uint8), torch.cat([scale, zero], -1), error


class Int4Linear(nn.Module):
    """A linear layer whose weights have 4 bits, in groups of 32 with a scale and a zero.

    Args:
        linear: The layer to quantise; see `fits`.
    """

    identity: torch.Tensor
    packed: torch.Tensor
    grid: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        codes, grid = quantize_groups(linear.weight)
        self.register_buffer("identity", identity(codes))
        self.register_buffer("packed", _pack(codes), persistent=False)
        self.register_buffer("grid", grid)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply ``[..., in]``; return ``[..., out]`` of the same dtype."""
        rows = inputs.reshape(-1, self.in_features)
        if unpacking() is None or len(rows) <= _KERNEL_ROWS:
            outputs: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                rows.bfloat16(), self.packed, GROUP, self.grid
            )
        else:
            dtype = matmul_dtype(inputs.dtype)
            outputs = functional.linear(rows.to(dtype), self.dequantized(dtype))
        outputs = outputs.to(inputs.dtype)
        if self.bias is not None:
            outputs = outputs + self.bias
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weights, ``[out, in]``; only where `unpacking` is known."""
        scale, zero = self.grid.to(dtype).transpose(0, 1)[..., None].unbind(2)
        unpack = unpacking()
        assert unpack is not None
        groups = unpack(self.packed).view(self.out_features, -1, GROUP).to(dtype)
        return groups.sub_(_MIDDLE).mul_(scale).add_(zero).flatten(1)


def _pack(codes: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


@cache
def unpacking() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return what undoes the packing of this processor's kernel, if it is one of those known."""
    codes = torch.randint(16, (112, GROUP), dtype=torch.uint8, generator=torch.Generator())
    for way in (_unpack_64, _unpack_32, _unpack_pairs):
        if torch.equal(way(_pack(codes)), codes):
            return way
    return None


def _unpack_64(packed: torch.Tensor) -> torch.Tensor:
    return _unpack(packed, 64)  # AVX-512


def _unpack_32(packed: torch.Tensor) -> torch.Tensor:
    return _unpack(packed, 32)  # AVX2


def _unpack_pairs(packed: torch.Tensor) -> torch.Tensor:
    return _unpack(packed, packed.shape[0] + 1)  # other processors


def _unpack(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Undo a packing in blocks of rows: their low halves first, then their high halves.

    What is left over at the end is packed in pairs of rows.
    """
    rows, columns = packed.shape[0], packed.shape[1] * 2
    flat = packed.flatten()
    codes = flat.new_empty(rows, columns)
    whole = rows // size * size
    if whole:
        blocks = flat[: whole * columns // 2].view(-1, columns, size // 2)
        target = codes[:whole].view(-1, size, columns).transpose(1, 2)
        torch.bitwise_and(blocks, _LEVELS, out=target[..., : size // 2])
        torch.bitwise_right_shift(blocks, 4, out=target[..., size // 2 :])
    if whole < rows:
        pairs = flat[whole * columns // 2 :].view(columns, -1)
        codes[whole:].copy_(torch.stack([pairs & _LEVELS, pairs >> 4], -1).flatten(1).t())
    return codes

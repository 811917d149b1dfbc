"""Linear layers with 8 bits a weight, for processors that add up products of bytes."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from lag_integrations.engine.quantization.identity import identity
from lag_integrations.engine.quantization.processor import has_int8_dot_products

_MIDDLE = 128  # of a byte
_LARGEST = 32_639
_TINY = 1e-30
_OFFSET = 32_896  # 256 * 128 + 128: then both bytes stand for what they are above their middle


class Int8DotLinear(nn.Module):
    """A linear layer whose weights are int8, and whose inputs are integers of 16 bits.

    The weights are read once for both bytes of the inputs, and for some more rows: reading them is
    what takes the time.

    Args:
        weight: int8 ``[out, in]``.
        scale: bf16 ``[out]``.
        bias: ``[out]``, or None.
    """

    scale: torch.Tensor
    identity: torch.Tensor
    packed: torch.Tensor
    wide_scale: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.register_buffer("identity", identity(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("packed", _pack(weight), persistent=False)
        self.register_buffer("wide_scale", scale.float(), persistent=False)
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.long), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply ``[..., in]``; return ``[..., out]`` of the same dtype."""
        rows = inputs.reshape(-1, self.in_features).float()
        largest = torch.linalg.vector_norm(rows, torch.inf, 1, keepdim=True)
        step = largest.clamp_(min=_TINY).mul_(1 / _LARGEST)
        integers = (rows / step).add_(_OFFSET + 0.5).int()
        # The low bytes of all rows, then their high bytes.
        both = integers.view(torch.uint8).view(*rows.shape, 4)[..., :2].permute(2, 0, 1)
        products = _multiply(
            both.flatten(0, 1).contiguous(), self.packed, self.wide_scale, self.zeros
        )
        low, high = products.chunk(2)
        outputs = torch.add(low, high, alpha=256).mul_(step)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)


def pays(linear: nn.Linear) -> bool:
    """Return whether a layer has so many weights that to split its inputs is little beside them.

    Measured with AVX-512 (docs/performance.md): at 1 row as fast as `Int8Linear`, at 8 twice.
    """
    return linear.weight.numel() >= 1 << 21 and linear.out_features > linear.in_features


@cache
def are_exact() -> bool:
    """Return whether this processor's products of bytes are exact: some add up in 16 bits."""
    if not has_int8_dot_products():
        return False
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (8, 256), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (64, 256), dtype=torch.int8, generator=generator)
    inputs[0], weight[0] = 255, 127
    scale, zeros = torch.ones(64), torch.zeros(64, dtype=torch.long)
    exact = (inputs.long() - _MIDDLE) @ weight.long().t()
    return torch.equal(_multiply(inputs, _pack(weight), scale, zeros).long(), exact)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
    return packed


def _multiply(
    inputs: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """Multiply bytes above their middle with packed weights; return fp32 ``[rows, out]``."""
    no_bias, no_scale, no_zero = None, 1.0, 0
    outputs: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        *(inputs, 1.0, _MIDDLE, packed, scale, zeros),
        *(no_bias, no_scale, no_zero, torch.float32),
        *("none", [], ""),
    )
    return outputs

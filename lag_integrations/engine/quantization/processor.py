"""What this processor computes fast."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def _capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 cannot tell


def matmul_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return bf16 where the processor multiplies in it, else the dtype of what is multiplied."""
    has_bf16 = any(_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has_bf16 else dtype


def has_int8_dot_products() -> bool:
    """Return whether the processor adds up products of bytes in 32 bits."""
    return any(_capabilities().get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))

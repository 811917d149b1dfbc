"""In which dtype many rows are multiplied by unpacked weights."""

from __future__ import annotations

from functools import cache

import torch


@cache
def _has_bf16() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def matmul_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return bf16 where the processor computes in it, else the dtype of the rows."""
    return torch.bfloat16 if _has_bf16() else dtype

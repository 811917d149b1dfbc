"""How segments are stored: one class a codec, chosen by name."""

from __future__ import annotations

import torch

from lag_integrations.errors import StoreError
from lag_integrations.kv.codecs.base import Codec
from lag_integrations.kv.codecs.cast import Cast
from lag_integrations.kv.codecs.fp8 import Fp8
from lag_integrations.kv.codecs.int4 import Int4
from lag_integrations.kv.codecs.int8 import Int8
from lag_integrations.kv.codecs.zstd import SUFFIX, Zstd

__all__ = ["CODECS", "Codec", "codec"]

_PLAIN = {
    plain.name: plain
    for plain in (
        Cast("native", None),
        Cast("fp32", torch.float32),
        Cast("bf16", torch.bfloat16),
        Cast("fp16", torch.float16),
        Fp8(),
        Int8(),
        Int4(),
    )
}

CODECS: tuple[str, ...] = (*_PLAIN, *(name + SUFFIX for name in _PLAIN))
"""The names of all codecs."""


def codec(name: str) -> Codec:
    """Return the codec of a name.

    Raises:
        StoreError: There is none, or a package that it needs is not installed.
    """
    if name not in CODECS:
        raise StoreError(
            f"There is no codec {name!r}; use one of {', '.join(_PLAIN)}, each also with {SUFFIX}."
        )
    plain = _PLAIN[name.removesuffix(SUFFIX)]
    return Zstd(plain) if name.endswith(SUFFIX) else plain

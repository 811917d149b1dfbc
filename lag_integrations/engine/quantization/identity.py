"""What a fingerprint sees of quantised weights."""

from __future__ import annotations

import hashlib

import torch


def identity(integers: torch.Tensor) -> torch.Tensor:
    """Return the SHA-256 of integers of one byte each, as uint8 ``[32]``.

    It stands in a model's state instead of the weights, since these are kept in a form that depends
    on the processor.
    """
    digest = hashlib.sha256(integers.contiguous().numpy().data).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)

"""Segments whose values make no difference to what is measured."""

from __future__ import annotations

import torch

from lag_integrations.engine.engine import Engine
from lag_integrations.kv.segment import Segment


def random_segment(engine: Engine, tokens: int, seed: int) -> Segment:
    """Return a segment of a model's shape with random values."""
    generator = torch.Generator().manual_seed(seed)
    slots = []
    for group in engine.positions.groups:
        first, second = (
            torch.randn(len(group.layers), heads, tokens, dim, generator=generator).to(
                engine.model.dtype
            )
            for heads, dim in zip(group.heads, group.dims, strict=True)
        )
        slots.append((first, second))
    ids = torch.randint(100, 1000, (tokens,), generator=generator)
    return Segment(ids, tuple(slots), engine.fingerprint.id)

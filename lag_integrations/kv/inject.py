"""Segments to cache: rotate them to where they now stand, and hand the model a fresh cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from lag_integrations.errors import ContextWindowError, FingerprintMismatchError
from lag_integrations.kv.cache import make_room
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.segment import Segment


def inject(
    cache: DynamicCache,
    positions: Positions,
    segments: Sequence[Segment],
    *,
    start: int,
    fingerprint: str,
    temperature: float = 1.0,
) -> int:
    """Append segments, one after the other, to a cache.

    Args:
        cache: A cache of this request alone (`new_cache`): fresh, or holding what stands before the
            segments.
        positions: The model's position scheme.
        segments: In the order in which the model shall see them; they are copied, never changed.
        start: Position of the first segment token.
        fingerprint: Identity of the model; every segment must have it.
        temperature: Of the attention to each segment: below 1, it is drawn to what fits best in its
            last response (`positions.sharpen`). 1 leaves the keys as they are, bit for bit. Without
            effect on MLA, whose latents are keys and values at once.

    Returns:
        The position after the last segment token.

    Raises:
        FingerprintMismatchError: A segment belongs to another model.
        ContextWindowError: The segments reach beyond the model's usable window.
    """
    for segment in segments:
        if segment.fingerprint != fingerprint:
            raise FingerprintMismatchError(
                f"A segment was encoded by model {segment.fingerprint[:12]}, not by "
                f"{fingerprint[:12]}; encode its trace again with the model in use."
            )
    end = start + sum(len(segment) for segment in segments)
    if end > positions.window:
        raise ContextWindowError(
            f"The segments would end at position {end}, beyond the model's usable window of "
            f"{positions.window} tokens; recall fewer logs."
        )
    if end == start:
        return end
    with torch.no_grad():
        for index, group in enumerate(positions.groups):
            parts = [segment.slots[index] for segment in segments]
            # Written to where the model reads it, for all layers of the group at once.
            room = make_room(cache, group.layers, end - start, like=parts[0])
            where = torch.arange(start, end, device=room[0].device)
            positions.apply(
                group,
                parts,
                where,
                out=room,
                temperature=temperature,
                backgrounds=[segment.background for segment in segments],
            )
    return end

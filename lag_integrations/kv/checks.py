"""Whether a stored segment is one that this model could have made of its trace."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lag_integrations.errors import SegmentCorruptedError
from lag_integrations.kv.position_scheme import LayerGroup, Positions
from lag_integrations.kv.segment import Segment


def check_segment(
    segment: Segment, positions: Positions, token_ids: Sequence[int], background: int
) -> None:
    """Refuse a segment that is not of this model or not of this trace.

    A right hash says who wrote a file. This says that it can be injected, and that its tokens
    are the trace's.

    Args:
        segment: What was read from a file, on the CPU.
        positions: The model's position scheme.
        token_ids: The tokens that are kept of the trace.
        background: How many of them stand before the last response.

    Raises:
        SegmentCorruptedError: Layer groups, shapes, dtype or tokens differ, or a number is not
            finite.
    """
    problem = _problem(segment, positions, token_ids, background)
    if problem is not None:
        raise SegmentCorruptedError(
            f"A stored segment is whole, but {problem}. It is put aside, and its trace is encoded "
            "again."
        )


def _problem(
    segment: Segment, positions: Positions, token_ids: Sequence[int], background: int
) -> str | None:
    if segment.token_ids.tolist() != list(token_ids) or segment.background != background:
        return "its tokens are not those of its trace"
    if len(segment.slots) != len(positions.groups):
        return f"it has {len(segment.slots)} groups of layers, not {len(positions.groups)}"
    for group, pair in zip(positions.groups, segment.slots, strict=True):
        for slot, shape in zip(pair, _shapes(group, len(token_ids)), strict=True):
            if slot.dtype != positions.dtype or slot.shape != shape:
                given = f"{tuple(slot.shape)} of {slot.dtype}"
                return f"a tensor is {given}, not {shape} of {positions.dtype}"
            if slot.numel() and not torch.stack(torch.aminmax(slot)).isfinite().all():
                return "it holds numbers that are not finite"
    return None


def _shapes(group: LayerGroup, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first, second = (
        (len(group.layers), heads, tokens, dim)
        for heads, dim in zip(group.heads, group.dims, strict=True)
    )
    return first, second

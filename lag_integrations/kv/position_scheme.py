"""Takes positions out of cache slots, and puts others in: the learned scheme of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lag_integrations.kv.cache import LayerKV
from lag_integrations.kv.rope import AngleSource, Kernel

_CACHED_BYTES, _BLOCK_BYTES = 4 * 2**20, 2 * 2**20
"""A slot larger than the first is rotated in blocks of the second: twice as fast with 8 MB."""


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose slots have one shape and one kernel, so that one operation serves them all.

    Attributes:
        layers: Cache layer indices, ascending.
        kernels: Kernel of the first and of the second slot; None where no layer is rotated.
        sources: For each layer and slot, its angles; None for layers without positions (NoPE).
        heads: Heads of the first and of the second slot.
        dims: Last dimension of the first and of the second slot.
    """

    layers: tuple[int, ...]
    kernels: tuple[Kernel | None, Kernel | None]
    sources: tuple[tuple[AngleSource | None, AngleSource | None], ...]
    heads: tuple[int, int]
    dims: tuple[int, int]

    @property
    def has_keys(self) -> bool:
        """Whether the first slot is keys: in MLA it is a latent, and the second slot is rotated."""
        return self.kernels[1] is None


class Positions:
    """The learned position scheme of one loaded model.

    Attributes:
        groups: Every cache layer, grouped for batched rotation.
        window: Positions 0 … window - 1 are usable: there the scheme was verified to be relative.
        dtype: Of the keys and values that the model writes.
    """

    def __init__(self, groups: tuple[LayerGroup, ...], window: int, dtype: torch.dtype) -> None:
        self.groups = groups
        self.window = window
        self.dtype = dtype

    def describe(self) -> list[str]:
        """Describe each group in a line, for fingerprints and error messages."""
        lines = []
        for group in self.groups:
            kernels = ["none" if kernel is None else str(kernel) for kernel in group.kernels]
            kinds = [
                [None if source is None else (source.layer_type, source.columns) for source in pair]
                for pair in group.sources
            ]
            lines.append(f"{group.layers} {group.heads} {group.dims} {kernels} {kinds}")
        return lines

    def apply(
        self,
        group: LayerGroup,
        parts: Sequence[LayerKV],
        positions: torch.Tensor,
        *,
        out: LayerKV,
        temperature: float = 1.0,
        backgrounds: Sequence[int] = (),
    ) -> None:
        """Rotate position-free slots of a group to given positions.

        Args:
            group: The group the slots belong to.
            parts: Pairs of tensors ``[layers, heads, tokens, dim]``, one after the other; left as
                they are.
            positions: int64, ``[tokens]`` of all parts, below `window`.
            out: Where to write them, a pair of tensors for the tokens of all parts.
            temperature: Of the attention to each part, see `sharpen`; without effect where the
                first slot is none (MLA).
            backgrounds: Of each part, how many tokens stand before the last response; none by
                default.
        """
        for index, kernel in enumerate(group.kernels):
            sharper = index == 0 and group.has_keys and temperature != 1
            if kernel is not None:
                cos, sin = _stacked_angles(group, index, kernel, positions)
            begin = 0
            for part, background in zip(parts, backgrounds or [0] * len(parts), strict=True):
                end = begin + part[index].shape[2]
                into = out[index][:, :, begin:end]
                for rows in _blocks(part[index]):
                    slot = part[index][rows]
                    if sharper:
                        slot = sharpen(slot, temperature, background)
                    if kernel is None:
                        into[rows].copy_(slot)
                    else:
                        here = cos[:, :, begin:end], sin[:, :, begin:end]
                        angles = (one if len(one) == 1 else one[rows] for one in here)
                        kernel.rotate(slot, *angles, out=into[rows])
                begin = end

    def strip(
        self,
        group: LayerGroup,
        slots: LayerKV,
        positions: torch.Tensor,
        *,
        out_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the positions out of slots that a model wrote: the inverse of `apply`.

        Args:
            group: The group the slots belong to.
            slots: Two tensors ``[layers, heads, tokens, dim]``; left as they are.
            positions: int64, ``[tokens]``: where they stand.
            out_dtype: dtype of the result.
        """
        free = (
            torch.empty_like(slots[0], dtype=out_dtype),
            torch.empty_like(slots[1], dtype=out_dtype),
        )
        for index, kernel in enumerate(group.kernels):
            if kernel is None:
                free[index].copy_(slots[index])
            else:
                cos, sin = _stacked_angles(group, index, kernel, positions)
                kernel.rotate(slots[index], cos, -sin, out=free[index])
        return free


def sharpen(keys: torch.Tensor, temperature: float, background: int = 0) -> torch.Tensor:
    """Scale what tells a segment's keys apart, but not what they have in common.

    A query's logits for the keys of the last response spread from their mean by a factor ``1 /
    temperature`` (attention temperature of APE, arXiv 2502.05431), those of what led to it by the
    inverse. So a task that comes back finds the response, and not what an earlier step said
    (docs/evaluation.md).

    Dividing the whole keys, as APE does, also scales the part that all keys share. Within one
    sequence that part cancels in the softmax, but here other tokens stand beside the segment:
    models with large key biases (Qwen2: a norm of 874 beside deviations of 14) then attend to
    nothing but the segment, or not to it at all.

    Args:
        keys: Position-free keys of one segment, ``[layers, heads, tokens, dim]``, any float dtype.
        temperature: Below 1 for sharper attention.
        background: How many tokens, from the first, led to the last response.

    Returns:
        New keys, fp32.
    """
    whole = keys.float()
    weights = torch.full((whole.shape[2], 1), 1 / temperature, device=whole.device)
    weights[:background] = temperature
    return torch.lerp(whole.mean(dim=2, keepdim=True), whole, weights)


def _blocks(slot: torch.Tensor) -> Iterator[slice]:
    """Return how many layers to rotate at once: all, or on a CPU what stays in its cache."""
    layers, step = len(slot), len(slot)
    if slot.device.type == "cpu" and slot.nbytes > _CACHED_BYTES:
        step = max(1, layers * _BLOCK_BYTES // slot.nbytes)
    return (slice(begin, begin + step) for begin in range(0, layers, step))


def _stacked_angles(
    group: LayerGroup, slot: int, kernel: Kernel, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines ``[layers or 1, 1, tokens, width / 2]``; angle 0 if not rotated."""
    known: dict[AngleSource | None, tuple[torch.Tensor, torch.Tensor]] = {}
    for pair in group.sources:
        source = pair[slot]
        if source in known:
            continue
        if source is None:
            ones = torch.ones(len(positions), kernel.width // 2, device=positions.device)
            known[source] = (ones, torch.zeros_like(ones))
        else:
            known[source] = source.cos_sin(positions)
    if len(known) == 1:
        cos, sin = next(iter(known.values()))
        return cos[None, None], sin[None, None]
    per_layer = [known[pair[slot]] for pair in group.sources]
    return (
        torch.stack([cos for cos, _ in per_layer])[:, None],
        torch.stack([sin for _, sin in per_layer])[:, None],
    )

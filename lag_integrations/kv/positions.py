"""Takes positions out of cache slots, and puts others in: the learned scheme of one model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lag_integrations.kv.cache import Slots
from lag_integrations.kv.rotation import AngleSource, Kernel


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
    """

    def __init__(self, groups: tuple[LayerGroup, ...], window: int) -> None:
        self.groups = groups
        self.window = window

    def describe(self) -> list[str]:
        """One line a group, for fingerprints and error messages."""
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
        slots: Slots,
        positions: torch.Tensor,
        *,
        out_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate position-free slots of a group to given positions.

        Args:
            group: The group the slots belong to.
            slots: Two tensors ``[layers, heads, tokens, dim]``; left as they are.
            positions: int64, ``[tokens]``, below `window`.
            out_dtype: dtype of the result.
        """
        return self._turn(group, slots, positions, 1.0, out_dtype)

    def strip(
        self,
        group: LayerGroup,
        slots: Slots,
        positions: torch.Tensor,
        *,
        out_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of `apply`: take the positions out of slots that a model wrote."""
        return self._turn(group, slots, positions, -1.0, out_dtype)

    def _turn(
        self,
        group: LayerGroup,
        slots: Slots,
        positions: torch.Tensor,
        sign: float,
        out_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        turned = []
        for index, slot in enumerate(slots):
            kernel = group.kernels[index]
            if kernel is None:
                turned.append(slot.to(out_dtype))
                continue
            cos, sin = _stacked_angles(group, index, kernel, positions)
            turned.append(kernel.rotate(slot, cos, sign * sin, out_dtype=out_dtype))
        return turned[0], turned[1]


def _stacked_angles(
    group: LayerGroup, slot: int, kernel: Kernel, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[layers or 1, 1, tokens, width / 2]``; unrotated layers get angle 0."""
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

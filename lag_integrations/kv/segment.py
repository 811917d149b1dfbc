"""A segment: what of a log is kept for the model to attend to, free of positions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # stores know segments before torch is loaded
    import torch

    from lag_integrations.kv.cache import LayerKV


@dataclass(frozen=True)
class SegmentKey:
    """Everything that decides a segment's validity: equal keys, exchangeable segments.

    Attributes:
        log_id: The log it was made of.
        fingerprint: Identity of the model that encoded it (`Fingerprint.id`).
        selection: Name of the rule that picked its tokens.
        codec: Name of the codec in which it is stored.
    """

    log_id: str
    fingerprint: str
    selection: str
    codec: str


@dataclass(frozen=True, eq=False)
class Segment:
    """Position-free keys and values of the kept tokens of one log, for one model.

    Never changed after it was made: injection copies.

    Attributes:
        token_ids: The kept tokens, int64 ``[tokens]``, on the CPU.
        slots: One pair a layer group of the model's `Positions`, each tensor
            ``[layers, heads, tokens, dim]`` in the model's dtype. The pair is (keys, values), for
            MLA (latent, rotary key). One large tensor a group keeps the steps few and large.
        fingerprint: Identity of the model that encoded it (`Fingerprint.id`).
        info: Facts about its making (selection, cut tokens), as text; no trace content.
        background: How many tokens, from the first, stand before the last response: what led to
            it. The attention temperature makes attention to them flatter, not sharper
            (`positions.sharpen`).
    """

    token_ids: torch.Tensor
    slots: tuple[LayerKV, ...]
    fingerprint: str
    info: dict[str, str] = field(default_factory=dict)
    background: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.background <= len(self):
            raise ValueError(f"{self.background} of {len(self)} tokens cannot be background.")

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    def __repr__(self) -> str:
        return f"Segment({len(self)} tokens, {self.nbytes} bytes, model {self.fingerprint[:12]})"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        tensors = [self.token_ids, *(slot for pair in self.slots for slot in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def part(self, tokens: range, background: int = 0) -> Segment:
        """Return some of its tokens, one after the other, as a segment; nothing is copied.

        Args:
            tokens: Which.
            background: The part's own.
        """
        start, stop = tokens.start, tokens.stop
        slots = tuple(
            (first[:, :, start:stop], second[:, :, start:stop]) for first, second in self.slots
        )
        return replace(
            self, token_ids=self.token_ids[start:stop], slots=slots, background=background
        )

    def to(self, device: torch.device) -> Segment:
        """Return the segment with its slots on a device; a GPU copies pinned ones by itself."""
        aside = device.type == "cuda"
        slots = tuple(
            (first.to(device, non_blocking=aside), second.to(device, non_blocking=aside))
            for first, second in self.slots
        )
        return replace(self, slots=slots)

    def pinned(self) -> Segment:
        """Return the same segment in memory that stays where it is, for a GPU to copy from.

        Raises:
            RuntimeError: There is no GPU, or not so much memory that may be pinned.
        """
        slots = tuple((first.pin_memory(), second.pin_memory()) for first, second in self.slots)
        return replace(self, slots=slots)

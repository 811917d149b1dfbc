"""How a rotary embedding turns one cache slot, and the angles it turns it by."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True)
class Kernel:
    """Which dimensions of a slot are rotated, and how they pair up.

    Attributes:
        pairing: ``half`` pairs dimension i with i + width/2 (Llama); ``interleaved`` pairs 2i with
            2i + 1 (Cohere, GLM).
        offset: First rotated dimension.
        width: Number of rotated dimensions, even.
        sign: -1 where the model turns the other way round (NanoChat).
    """

    pairing: Literal["half", "interleaved"]
    offset: int
    width: int
    sign: Literal[1, -1] = 1

    def rotate(
        self,
        slot: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *,
        out: torch.Tensor,
    ) -> None:
        """Turn a slot by given angles.

        Args:
            slot: ``[…, tokens, dim]``, any float dtype; left as it is.
            cos: fp32, broadcastable to ``[…, tokens, width / 2]``, of unit norm with ``sin``.
            sin: As ``cos``.
            out: Where to write the result, of the slot's shape; the arithmetic is fp32.
        """
        sin = self.sign * sin
        first, second = self._halves(slot)
        into = self._halves(out)
        if slot.dtype == out.dtype == torch.float32:  # without a copy in between
            torch.mul(first, cos, out=into[0]).addcmul_(second, sin, value=-1)
            torch.mul(second, cos, out=into[1]).addcmul_(first, sin)
        else:
            first, second = first.float(), second.float()
            into[0].copy_(first * cos - second * sin)
            into[1].copy_(second * cos + first * sin)
        for rest in (slice(0, self.offset), slice(self.offset + self.width, None)):
            out[..., rest].copy_(slot[..., rest])

    def _halves(self, slot: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return views of the first and of the second of all pairs."""
        rotated = slot.narrow(-1, self.offset, self.width)
        if self.pairing == "half":
            return rotated.chunk(2, dim=-1)
        return rotated[..., ::2], rotated[..., 1::2]


def kernels(dim: int, width: int) -> list[Kernel]:
    """Return every way in which a rotation of some width can act on a slot's last dimension."""
    return [
        Kernel(pairing, offset, width, sign)
        for sign in (1, -1)
        for offset in sorted({0, dim - width})
        for pairing in ("half", "interleaved")
    ]


@dataclass(frozen=True)
class AngleSource:
    """One rotary module of the model, asked for the angles themselves.

    Asking the module, instead of keeping a table of frequencies, gives bit for bit the angles that
    the model uses, whatever scaling it applies.

    Attributes:
        module: The model's rotary embedding.
        layer_type: For modules that serve several kinds of layers (Gemma 3), which kind.
        columns: How the module lays out its angles over the last dimension: every angle once
            (``whole``), all angles twice in a row (``front``), or each angle twice (``even``).
    """

    module: nn.Module
    layer_type: str | None
    columns: Literal["whole", "front", "even"]

    def cos_sin(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit cosines and sines, fp32.

        Args:
            positions: int64, ``[tokens]``.

        Returns:
            Two tensors ``[tokens, width / 2]``. They are normalised: yarn and longrope multiply
            theirs by an attention factor, which belongs to the key's length, not to its angle.
        """
        like = torch.zeros(1, dtype=torch.float32, device=positions.device)
        kwargs = {} if self.layer_type is None else {"layer_type": self.layer_type}
        with torch.no_grad():
            result = self.module(like, positions[None], **kwargs)
        if isinstance(result, torch.Tensor) and torch.is_complex(result):
            cos, sin = result.real, result.imag
        else:
            cos, sin = result
        cos, sin = cos.float().reshape(len(positions), -1), sin.float().reshape(len(positions), -1)
        if self.columns == "front":
            cos, sin = cos[:, : cos.shape[1] // 2], sin[:, : sin.shape[1] // 2]
        elif self.columns == "even":
            cos, sin = cos[:, ::2], sin[:, ::2]
        norm = torch.hypot(cos, sin)
        return cos / norm, sin / norm


def angle_sources(model: nn.Module, layer_types: set[str]) -> list[AngleSource]:
    """Yield every way the model's rotary modules may mean their angles, for the probe to try."""
    sources: list[AngleSource] = []
    for module in _distinct(_rotary_modules(model)):
        parameters = inspect.signature(module.forward).parameters
        kinds = [*sorted(layer_types)] if "layer_type" in parameters else [None]
        for kind in kinds:
            for columns in ("front", "whole", "even"):
                source = AngleSource(module, kind, columns)
                if _answers(source):
                    sources.append(source)
    return sources


@contextmanager
def shifted_rotary(model: nn.Module, offset: int) -> Iterator[None]:
    """Let the model's rotary modules see every position less an offset.

    Run at that offset, a model whose only positions are rotary computes what it does at 0.
    """

    def shift(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        if bound.arguments.get("position_ids") is not None:
            bound.arguments["position_ids"] = bound.arguments["position_ids"] - offset
        return bound.args, bound.kwargs

    hooks = [
        module.register_forward_pre_hook(shift, with_kwargs=True)
        for module in _rotary_modules(model)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rotary_modules(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("RotaryEmbedding")
        and "position_ids" in inspect.signature(module.forward).parameters
    ]


def _distinct(modules: list[nn.Module]) -> list[nn.Module]:
    """Drop modules of equal frequencies: some models have one for every layer."""
    found: dict[tuple[Any, ...], nn.Module] = {}
    for module in modules:
        buffers = tuple(
            (name, tuple(buffer.flatten().tolist())) for name, buffer in module.named_buffers()
        )
        found.setdefault((type(module), buffers), module)
    return list(found.values())


def _answers(source: AngleSource) -> bool:
    device = next((buffer.device for buffer in source.module.buffers()), torch.device("cpu"))
    try:
        cos, sin = source.cos_sin(torch.arange(3, device=device))
    except Exception:  # a rotary module of another part of the model (vision, audio), or layer kind
        return False
    return cos.shape[-1] > 0 and bool(torch.isfinite(cos).all() and torch.isfinite(sin).all())

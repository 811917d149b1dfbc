"""Learns, at load time, how a model writes positions into its cache, and takes them out again.

Instead of a table of architectures, the model itself is asked: the same tokens are run at two
offsets, and the rotation that maps one cache onto the other is looked for, layer by layer. What
cannot be explained is refused, so a wrong rotation can never go unnoticed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lag_integrations.errors import UnsupportedModelError
from lag_integrations.kv.cache import new_cache, read_layers, unsupported_layers
from lag_integrations.kv.rotation import AngleSource, Kernel, angle_sources

_TOKENS = 12
_NEAR = 61
"""Offset of the fit: far enough to turn slow frequencies, near enough for exact fp32 angles."""


@dataclass(frozen=True)
class SlotRotation:
    """How one slot of one layer carries its position: a kernel and where its angles come from."""

    kernel: Kernel
    source: AngleSource


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


class Positions:
    """The learned position scheme of one loaded model.

    Attributes:
        groups: Every cache layer, grouped for batched rotation.
        window: Positions 0 … window - 1 are usable: there the scheme was verified to be relative.
    """

    def __init__(self, groups: tuple[LayerGroup, ...], window: int) -> None:
        self.groups = groups
        self.window = window

    @property
    def num_layers(self) -> int:
        """Number of cache layers (fewer than model layers where layers share their KV)."""
        return sum(len(group.layers) for group in self.groups)

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
        slots: tuple[torch.Tensor, torch.Tensor],
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
        slots: tuple[torch.Tensor, torch.Tensor],
        positions: torch.Tensor,
        *,
        out_dtype: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of `apply`: take the positions out of slots that a model wrote."""
        return self._turn(group, slots, positions, -1.0, out_dtype)

    def _turn(
        self,
        group: LayerGroup,
        slots: tuple[torch.Tensor, torch.Tensor],
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


def probe(model: PreTrainedModel) -> Positions:
    """Learn and verify how a model writes positions into its cache.

    Runs a dozen tokens a few times. Works for every rotary kind (default, linear, dynamic, yarn,
    longrope, llama3, partial, interleaved), for MLA, and for layers without positions.

    Args:
        model: A decoder-only model in evaluation mode, on its device and in its dtype.

    Raises:
        UnsupportedModelError: The cache cannot be moved to other positions; says why.
    """
    name = type(model).__name__
    _refuse_by_kind(model, name)
    tokens = _probe_tokens(model)
    near = _prefill(model, tokens, 0, name)
    _refuse_absolute_embeddings(model, near, tokens, name)
    moved = _prefill(model, tokens, _NEAR, name)
    tolerance = 2e-3 if model.dtype == torch.float32 else 6e-2
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    sources = angle_sources(model.base_model, layer_types)
    rotations = []
    for layer, (before, after) in enumerate(zip(near, moved, strict=True)):
        rotations.append(
            [_fit(before[slot], after[slot], sources, tolerance) for slot in range(2)],
        )
        for slot, fitted in enumerate(rotations[-1]):
            if isinstance(fitted, float):
                raise UnsupportedModelError(
                    f"{name} cannot be used: in layer {layer} the cached "
                    f"{('keys', 'values')[slot]} change with the absolute position in a way that "
                    f"no known rotary embedding explains (relative residual {fitted:.2g}). "
                    "Models with learned absolute positions cannot reuse KV at other positions."
                )
    groups = _group(near, rotations)
    positions = Positions(groups, 0)
    positions.window = _usable_window(model, positions, tokens, near, name)
    return positions


def _refuse_by_kind(model: PreTrainedModel, name: str) -> None:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} cannot be used: it is an encoder-decoder model; use a decoder-only one."
        )
    text_config = config.get_text_config()
    if "chunked_attention" in (getattr(text_config, "layer_types", None) or ()):
        raise UnsupportedModelError(
            f"{name} cannot be used: its chunked attention ties every key to an absolute chunk."
        )
    wrong = unsupported_layers(config)
    if wrong or getattr(model, "_is_stateful", False):
        kinds = f" ({', '.join(sorted(wrong))})" if wrong else ""
        raise UnsupportedModelError(
            f"{name} cannot be used: it has recurrent or linear-attention layers{kinds}, whose "
            "state is a running summary instead of one key and value a token. "
            "Use a model in which every layer is attention."
        )


def _probe_tokens(model: PreTrainedModel) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (_TOKENS,), generator=generator)
    # One token twice, among others: see _refuse_absolute_embeddings.
    tokens[-1] = tokens[0]
    return tokens.to(model.device)


def _prefill(
    model: PreTrainedModel, tokens: torch.Tensor, offset: int, name: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    cache = new_cache()
    parameters = inspect.signature(model.forward).parameters
    kwargs = {}
    if "position_ids" in parameters:
        positions = torch.arange(offset, offset + len(tokens), device=tokens.device)
        kwargs["position_ids"] = positions[None]
    if "logits_to_keep" in parameters:
        kwargs["logits_to_keep"] = 1
    try:
        with torch.no_grad():
            model(input_ids=tokens[None], past_key_values=cache, use_cache=True, **kwargs)
        layers = read_layers(cache)
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be used: it does not run with a plain cache at position {offset} "
            f"({type(error).__name__}: {error})."
        ) from error
    if not layers or any(slot.shape[:1] != (1,) or slot.dim() != 4 for pair in layers for slot in pair):
        raise UnsupportedModelError(
            f"{name} cannot be used: it does not fill a cache with one entry a token."
        )
    return layers


def _refuse_absolute_embeddings(
    model: PreTrainedModel,
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    tokens: torch.Tensor,
    name: str,
) -> None:
    """The first layer sees the bare embeddings: one token must get one value wherever it stands.

    This catches models that count positions themselves and take no ``position_ids``.
    """
    values = layers[0][1].float()
    first, again = values[:, :, 0], values[:, :, -1]
    keys = layers[0][0].float()
    same_values = _residual(first, again) < 2e-2
    same_keys = _residual(keys[:, :, 0], keys[:, :, -1]) < 2e-2  # MLA: the latent is in this slot
    if not (same_values or same_keys):
        raise UnsupportedModelError(
            f"{name} cannot be used: it adds absolute position embeddings to its input, so a "
            "token's keys and values cannot be moved to another position. "
            "Use a model with rotary, ALiBi or no position embeddings."
        )


def _residual(actual: torch.Tensor, expected: torch.Tensor) -> float:
    scale = expected.norm().item()
    return (actual - expected).norm().item() / scale if scale > 0 else 0.0


def _fit(
    before: torch.Tensor,
    after: torch.Tensor,
    sources: list[AngleSource],
    tolerance: float,
) -> SlotRotation | None | float:
    """The rotation that maps one slot onto the other, None if equal, else the best residual."""
    before, after = before.float(), after.float()
    best = _residual(before, after)
    if best < tolerance:
        return None
    found: SlotRotation | None = None
    dim = before.shape[-1]
    start = torch.arange(_TOKENS, device=before.device)
    for source in sources:
        cos_0, sin_0 = source.cos_sin(start)
        cos_d, sin_d = source.cos_sin(start + _NEAR)
        width = 2 * cos_0.shape[-1]
        if width > dim:
            continue
        for offset in sorted({0, dim - width}):
            for kernel in (Kernel("half", offset, width), Kernel("interleaved", offset, width)):
                free = kernel.rotate(before, cos_0, -sin_0, out_dtype=torch.float32)
                moved = kernel.rotate(free, cos_d, sin_d, out_dtype=torch.float32)
                residual = _residual(moved, after)
                if residual < best:
                    best, found = residual, SlotRotation(kernel, source)
    return found if found is not None and best < tolerance else best


def _group(
    layers: list[tuple[torch.Tensor, torch.Tensor]],
    rotations: list[list[SlotRotation | None | float]],
) -> tuple[LayerGroup, ...]:
    """Layers of equal shape and kernel together; a layer without positions joins any kernel."""
    groups: list[dict] = []
    for layer, (slots, fitted) in enumerate(zip(layers, rotations, strict=True)):
        heads = (slots[0].shape[1], slots[1].shape[1])
        dims = (slots[0].shape[-1], slots[1].shape[-1])
        turns = [turn if isinstance(turn, SlotRotation) else None for turn in fitted]
        kernels = [None if turn is None else turn.kernel for turn in turns]
        sources = tuple(None if turn is None else turn.source for turn in turns)
        for group in groups:
            fits = all(
                mine is None or other is None or mine == other
                for mine, other in zip(kernels, group["kernels"], strict=True)
            )
            if group["heads"] == heads and group["dims"] == dims and fits:
                break
        else:
            group = {"heads": heads, "dims": dims, "kernels": kernels, "layers": [], "sources": []}
            groups.append(group)
        group["layers"].append(layer)
        group["sources"].append(sources)
        group["kernels"] = [
            other if mine is None else mine
            for mine, other in zip(kernels, group["kernels"], strict=True)
        ]
    return tuple(
        LayerGroup(
            tuple(group["layers"]),
            (group["kernels"][0], group["kernels"][1]),
            tuple(group["sources"]),
            group["heads"],
            group["dims"],
        )
        for group in groups
    )


def _usable_window(
    model: PreTrainedModel,
    positions: Positions,
    tokens: torch.Tensor,
    near: list[tuple[torch.Tensor, torch.Tensor]],
    name: str,
) -> int:
    """The largest stated window at whose end the scheme still holds.

    Longrope changes its frequencies and Ministral 3 its query scale beyond the original training
    length; there, cached keys stop being movable, and the smaller window is the usable one.
    """
    # Angles are computed in fp32, so at far positions the model itself is only this exact.
    tolerance = 3e-2 if model.dtype == torch.float32 else 1e-1
    for window in _stated_windows(model):
        if window <= _TOKENS + _NEAR:
            continue
        offset = window - len(tokens)
        start = torch.arange(len(tokens), device=tokens.device)
        far = _prefill(model, tokens, offset, name)
        if _explains(positions, near, far, start, offset, tolerance):
            return window
    raise UnsupportedModelError(
        f"{name} cannot be used: its cached keys do not move rigidly with the position at any of "
        f"its stated context lengths {_stated_windows(model)}."
    )


def _explains(
    positions: Positions,
    near: list[tuple[torch.Tensor, torch.Tensor]],
    far: list[tuple[torch.Tensor, torch.Tensor]],
    start: torch.Tensor,
    offset: int,
    tolerance: float,
) -> bool:
    for group in positions.groups:
        before = tuple(torch.cat([near[layer][slot] for layer in group.layers]) for slot in (0, 1))
        after = [torch.cat([far[layer][slot] for layer in group.layers]) for slot in (0, 1)]
        free = positions.strip(group, before, start, out_dtype=torch.float32)
        moved = positions.apply(group, free, start + offset, out_dtype=torch.float32)
        for slot in (0, 1):
            if _residual(moved[slot], after[slot].float()) > tolerance:
                return False
    return True


def _stated_windows(model: PreTrainedModel) -> list[int]:
    config = model.config.get_text_config()
    stated = []
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        stated.append(getattr(config, key, None))
    rope = getattr(config, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        stated.append(scaling.get("original_max_position_embeddings"))
    stated.append(getattr(config, "original_max_position_embeddings", None))
    windows = sorted({int(value) for value in stated if value}, reverse=True)
    # ALiBi models state no window and have none; this is the length they were trained for.
    return windows or [2048]

"""Learns, at load time, how a model writes positions into its cache.

Instead of a table of architectures, the model itself is asked: the same tokens are run at two
offsets, and the rotation that maps one cache onto the other is looked for, layer by layer. What
cannot be explained is refused, so a wrong rotation can never go unnoticed.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from lag_integrations.errors import UnsupportedModelError
from lag_integrations.kv.cache import LayerKV, new_cache, read_layers, unsupported_layers
from lag_integrations.kv.position_scheme import LayerGroup, Positions
from lag_integrations.kv.rope import (
    AngleSource,
    Kernel,
    angle_sources,
    kernels,
    shifted_rotary,
)

_TOKENS = 12
_NEAR = 61
"""Offset of the fit: far enough to turn slow frequencies, near enough for exact fp32 angles."""
_SAME = 5e-3
"""Relative difference of equal computations: on a GPU the order of sums may vary."""


@dataclass(frozen=True)
class SlotRotation:
    """How one slot of one layer carries its position: a kernel and where its angles come from."""

    kernel: Kernel
    source: AngleSource


def probe(model: PreTrainedModel) -> Positions:
    """Learn and verify how a model writes positions into its cache.

    Runs a dozen tokens a few times. Works for every rotary kind (default, linear, dynamic, yarn,
    longrope, llama3, partial, interleaved), for MLA, and for layers without positions.

    The fit compares tokens that are each alone in their sequence: whatever their position, they
    attend to themselves only, so nothing but the rotation can change, and neither rounding in
    earlier layers nor the routing of experts blurs it.

    Args:
        model: A decoder-only model in evaluation mode, on its device and in its dtype.

    Raises:
        UnsupportedModelError: The cache cannot be moved to other positions; says why.
    """
    name = type(model).__name__
    _refuse_by_kind(model, name)
    tokens = _probe_tokens(model)
    _refuse_absolute_embeddings(model, tokens, name)
    near = _prefill(model, tokens, 0, name, alone=True)
    moved = _prefill(model, tokens, _NEAR, name, alone=True)
    layer_types = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    sources = angle_sources(model.base_model, layer_types)
    rotations = []
    for layer, (before, after) in enumerate(zip(near, moved, strict=True)):
        rotations.append(
            [_fit(before[slot], after[slot], sources, _tolerance(model)) for slot in range(2)],
        )
        for slot, fitted in enumerate(rotations[-1]):
            if isinstance(fitted, float):
                raise UnsupportedModelError(
                    f"{name} cannot be used: in layer {layer} the cached "
                    f"{('keys', 'values')[slot]} change with the absolute position in a way that "
                    f"no known rotary embedding explains (relative residual {fitted:.2g}). "
                    "Models with learned absolute positions cannot reuse KV at other positions."
                )
    positions = Positions(_group(near, rotations), 0, near[0][0].dtype)
    positions.window = _usable_window(model, positions, tokens, near, name)
    return positions


def _tolerance(model: PreTrainedModel) -> float:
    """Return the relative error of a rotated key: the model rounds to its dtype three times.

    Attention sinks (GPT-OSS) let that rounding into later layers, even for a token alone.
    """
    return 1e-3 if model.dtype == torch.float32 else 6e-2


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
            f"{name} cannot be used: it has layers{kinds} that keep something other than one key "
            "and one value a token, such as a recurrent or linear-attention state. "
            "Use a model in which every layer is plain attention."
        )


def _probe_tokens(model: PreTrainedModel) -> torch.Tensor:
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (_TOKENS,), generator=generator)
    # One token twice, among others: see _refuse_absolute_embeddings.
    tokens[-1] = tokens[0]
    return tokens.to(model.device)


def _prefill(
    model: PreTrainedModel, tokens: torch.Tensor, offset: int, name: str, *, alone: bool = False
) -> list[LayerKV]:
    """Return the cache layers, ``[1, heads, tokens, dim]``, of tokens that stand at an offset.

    Args:
        model: The model.
        tokens: int64, ``[tokens]``.
        offset: Position of the first token.
        name: Of the model, for messages.
        alone: Whether each token is a sequence of its own, at its own position.
    """
    cache = new_cache()
    parameters = inspect.signature(model.forward).parameters
    shape = (-1, 1) if alone else (1, -1)
    kwargs: dict[str, Any] = {}
    if "position_ids" in parameters:
        positions = torch.arange(offset, offset + len(tokens), device=tokens.device)
        kwargs["position_ids"] = positions.view(shape)
    if "logits_to_keep" in parameters:
        kwargs["logits_to_keep"] = 1
    try:
        with torch.no_grad():
            model(input_ids=tokens.view(shape), past_key_values=cache, use_cache=True, **kwargs)
        layers = read_layers(cache)
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{name} cannot be used: it does not run with a plain cache at position {offset} "
            f"({type(error).__name__}: {error})."
        ) from error
    rows, columns = (len(tokens), 1) if alone else (1, len(tokens))
    if not layers or any(
        slot.dim() != 4 or (slot.shape[0], slot.shape[2]) != (rows, columns)
        for pair in layers
        for slot in pair
    ):
        raise UnsupportedModelError(
            f"{name} cannot be used: it does not fill a cache with one entry a token."
        )
    if alone:
        return [(first.transpose(0, 2), second.transpose(0, 2)) for first, second in layers]
    return layers


def _refuse_absolute_embeddings(model: PreTrainedModel, tokens: torch.Tensor, name: str) -> None:
    """Refuse a model whose first layer gives one token several values, by where it stands.

    This catches models that count positions themselves and take no ``position_ids``. Where those
    rotate their keys, the fit could not see it, so their keys must not change either.
    """
    slots = [slot.float() for slot in _prefill(model, tokens, 0, name)[0]]
    same = [_residual(slot[:, :, :1], slot[:, :, -1:]) < 2e-2 for slot in slots]
    told = "position_ids" in inspect.signature(model.forward).parameters
    # With MLA it is the first slot, the latent, that has no position.
    if not (any(same) if told else all(same)):
        raise UnsupportedModelError(
            f"{name} cannot be used: it adds absolute position embeddings to its input, or takes "
            "no position_ids, so a token's keys and values cannot be moved to another position. "
            "Use a model with rotary, ALiBi or no position embeddings."
        )


def _residual(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error of slots ``[…, tokens, dim]``: the median over tokens.

    A wrong rotation spoils every token; rounding can send single ones to other experts.
    """
    error, scale = (
        slot.movedim(-2, 0).flatten(1).norm(dim=1) for slot in (actual - expected, expected)
    )
    return float((error / scale.clamp_min(1e-12)).median())


def _fit(
    before: torch.Tensor,
    after: torch.Tensor,
    sources: list[AngleSource],
    tolerance: float,
) -> SlotRotation | float | None:
    """Find the rotation that maps one slot onto the other.

    Returns:
        The rotation, None if none is needed, or the least relative error if none does.
    """
    before, after = before.float(), after.float()
    best = _residual(before, after)
    if best == 0.0:
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
        for kernel in kernels(dim, width):
            moved = torch.empty_like(before, dtype=torch.float32)
            kernel.rotate(before, cos_0, -sin_0, out=moved)
            kernel.rotate(moved.clone(), cos_d, sin_d, out=moved)
            residual = _residual(moved, after)
            if residual < best:
                best, found = residual, SlotRotation(kernel, source)
    return found if best < tolerance else best


def _group(
    layers: list[LayerKV],
    rotations: list[list[SlotRotation | float | None]],
) -> tuple[LayerGroup, ...]:
    """Group layers of equal shape and kernel; a layer without positions joins any kernel."""
    groups: list[dict[str, Any]] = []
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
    near: list[LayerKV],
    name: str,
) -> int:
    """Return the largest stated window at whose end the scheme still holds.

    Longrope changes its frequencies and Ministral 3 its query scale beyond the original training
    length; there, cached keys stop being movable, and the smaller window is the usable one.
    """
    together = _prefill(model, tokens, 0, name)
    for window in _stated_windows(model):
        offset = window - len(tokens)
        if offset <= _NEAR or not _steady(positions, len(tokens), offset, tokens.device):
            continue
        far = _prefill(model, tokens, offset, name, alone=True)
        if _largest_residual(positions, near, far, offset) > _tolerance(model):
            continue
        # With the rotation held back, nothing may be left that depends on the position.
        with shifted_rotary(model, offset):
            rest = _prefill(model, tokens, offset, name)
        if _largest_difference(rest, together) < _SAME:
            return window
    raise UnsupportedModelError(
        f"{name} cannot be used: its cached keys do not move rigidly with the position at any of "
        f"its stated context lengths {_stated_windows(model)}."
    )


def _steady(positions: Positions, count: int, offset: int, device: torch.device) -> bool:
    """Tell whether angles advance from token to token as much at an offset as at the start."""
    start = torch.arange(count, device=device)
    for source in {turn for g in positions.groups for pair in g.sources for turn in pair if turn}:
        near, far = (torch.complex(*source.cos_sin(start + shift)) for shift in (0, offset))
        drift = near * near[0].conj() - far * far[0].conj()
        if drift.abs().max().item() > 1e-3 + offset * 2**-22:  # models compute angles in fp32
            return False
    return True


def _largest_residual(
    positions: Positions, near: list[LayerKV], far: list[LayerKV], offset: int
) -> float:
    """Return how much slots at an offset differ from those at the start, moved there; relative."""
    worst = 0.0
    for group in positions.groups:
        before, after = (
            tuple(torch.cat([side[layer][slot] for layer in group.layers]) for slot in (0, 1))
            for side in (near, far)
        )
        start = torch.arange(before[0].shape[2], device=before[0].device)
        free = positions.strip(group, (before[0], before[1]), start, out_dtype=torch.float32)
        moved = torch.empty_like(free[0]), torch.empty_like(free[1])
        positions.apply(group, [free], start + offset, out=moved)
        worst = max(worst, *(_residual(moved[slot], after[slot].float()) for slot in (0, 1)))
    return worst


def _largest_difference(actual: list[LayerKV], expected: list[LayerKV]) -> float:
    """Return the largest relative difference of any slot of any layer."""
    return max(
        _residual(actual[layer][slot].float(), expected[layer][slot].float())
        for layer in range(len(expected))
        for slot in (0, 1)
    )


def _stated_windows(model: PreTrainedModel) -> list[int]:
    config = model.config.get_text_config()
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    stated = [getattr(config, key, None) for key in keys]
    largest = max((int(value) for value in stated if value), default=None)
    rope = getattr(config, "rope_parameters", None) or {}
    for scaling in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        stated.append(scaling.get("original_max_position_embeddings"))
    stated.append(getattr(config, "original_max_position_embeddings", None))
    windows = {int(value) for value in stated if value}
    # Some configs carry another model's original length as a default.
    windows = {value for value in windows if largest is None or value <= largest}
    # ALiBi models state no window and have none; this is the length they were trained for.
    return sorted(windows, reverse=True) or [2048]

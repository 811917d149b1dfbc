"""Token ids to segments: one forward pass over everything; only the kept tokens stay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from lag_integrations.errors import ContextWindowError
from lag_integrations.kv.cache import new_cache, read_layers, widen
from lag_integrations.kv.forward import read_rows
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.segment import Segment


def encode(
    model: PreTrainedModel,
    positions: Positions,
    token_ids: Sequence[int],
    keep: Sequence[int],
    *,
    fingerprint: str,
    info: dict[str, str] | None = None,
    background: int = 0,
) -> Segment:
    """Encode one trace; arguments and errors are those of `encode_rows`."""
    (segment,) = encode_rows(
        model,
        positions,
        [(token_ids, keep)],
        fingerprint=fingerprint,
        infos=[info or {}],
        backgrounds=[background],
    )
    return segment


def encode_rows(
    model: PreTrainedModel,
    positions: Positions,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    cache: DynamicCache | None = None,
    *,
    fingerprint: str,
    infos: Sequence[dict[str, str]],
    backgrounds: Sequence[int],
) -> list[Segment]:
    """Encode tokens in the context of all tokens, and keep some (LAG paper, section 3.1).

    Several rows are padded on the right, where what is causal does not see it.

    Args:
        model: The model, in evaluation mode.
        positions: Its position scheme.
        rows: Of each trace all of its tokens, at most ``positions.window``, and the indices of
            those to keep, ascending. Each has attended to all tokens before it, so its keys and
            values carry the context that is dropped.
        cache: Holds what all rows begin with already, but not all of a row. A single row is read
            into it. A new one by default.
        fingerprint: Identity of the model.
        infos: Facts to store with each segment.
        backgrounds: Of each row, how many of the kept tokens stand before the last response.

    Returns:
        The segments, in the model's dtype, on the model's device.

    Raises:
        ContextWindowError: There are more tokens than the model's usable window.
    """
    longest = max(len(token_ids) for token_ids, _ in rows)
    if longest > positions.window:
        raise ContextWindowError(
            f"The trace has {longest} tokens, more than the model's usable window of "
            f"{positions.window}; cut it before encoding."
        )
    cache = new_cache() if cache is None else cache
    known = cache.get_seq_length()
    unread = torch.zeros(len(rows), longest - known, dtype=torch.int64)
    for row, (token_ids, _) in enumerate(rows):
        unread[row, : len(token_ids) - known] = torch.tensor(list(token_ids[known:]))
    if len(rows) > 1:
        cache = widen(cache, len(rows))
    segments = []
    with torch.no_grad():
        read_rows(model, unread, cache)
        layers = read_layers(cache)
        for row, (token_ids, keep) in enumerate(rows):
            kept = torch.tensor(list(keep), dtype=torch.int64, device=model.device)
            slots = []
            for group in positions.groups:
                first, second = (
                    torch.cat(
                        [
                            layers[layer][slot][row : row + 1].index_select(2, kept)
                            for layer in group.layers
                        ]
                    )
                    for slot in (0, 1)
                )
                slots.append(
                    positions.strip(group, (first, second), kept, out_dtype=layers[0][0].dtype)
                )
            ids = torch.tensor(list(token_ids), dtype=torch.int64)[kept.cpu()]
            segments.append(Segment(ids, tuple(slots), fingerprint, infos[row], backgrounds[row]))
    return segments

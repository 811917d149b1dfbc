"""How an answer reads, right or wrong: whether it repeats itself, and whether it was likely."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lag_integrations.engine import Engine
from lag_integrations.generation.row import Request
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import prefill

_WORDS = 3


def repetition(text: str) -> float:
    """The share of runs of three words that stood in the text before; 0 of fewer than three."""
    words = text.lower().split()
    runs = list(zip(*(words[place:] for place in range(_WORDS)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def log_likelihood(engine: Engine, request: Request, token_ids: Sequence[int]) -> float:
    """How likely an answer is after a prompt without segments: nats a token, 0 or less."""
    cache, device = new_cache(), engine.model.device
    *before, last = request.prompt_ids
    with torch.no_grad():
        if before:
            prefill(engine.model, torch.tensor(before), cache)
        read = torch.tensor([[last, *token_ids[:-1]]], device=device)
        places = torch.arange(len(before), len(before) + read.shape[1], device=device)[None]
        logits = engine.model(
            input_ids=read, position_ids=places, past_key_values=cache, use_cache=True
        ).logits[0]
    found = torch.log_softmax(logits.float(), dim=-1)
    said = torch.tensor(list(token_ids), device=device)[:, None]
    return float(found.gather(1, said).mean())

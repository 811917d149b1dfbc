"""What weights of other kinds would gain: bf16, int8 (torchao, if it is installed), compiled."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StaticCache

from benchmarks.performance.paired import Figure, figures, interleaved
from lag_integrations.engine.engine import Engine
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.forward import prefill
from lag_integrations.runtime.loading_lock import loading

DECODING, READING = "decoding by weights, tokens a second", "reading 1,024 tokens by weights, s"
PLAIN = "fp32"
_PROMPT, _READ = 64, 1024


def weights(engine: Engine, rounds: int, tokens: int) -> Iterator[Figure]:
    """Measure answers of so many tokens, without the rest of the engine.

    A GGUF file has no dense weights to begin with: nothing is measured.
    """
    if engine.name.endswith(".gguf"):
        return
    models = {PLAIN: _load(engine, dtype=torch.float32), "bf16": _load(engine, dtype="bfloat16")}
    if importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import (  # type: ignore[import-not-found, unused-ignore]
            Int8WeightOnlyConfig,
        )
        from transformers import TorchAoConfig

        int8 = TorchAoConfig(Int8WeightOnlyConfig())
        models["int8 weights"] = _load(engine, dtype=torch.float32, quantization_config=int8)
    ways: dict[str, Callable[[], float]] = {}
    for name, model in models.items():
        ways[name] = partial(_decode, model, tokens)
        compiled = torch.compile(model.forward)
        ways[f"{name}, compiled, static cache"] = partial(_decode_static, model, compiled, tokens)
    with torch.no_grad():
        taken = interleaved(rounds, ways)  # the first round, which is not counted, compiles
        yield from figures(DECODING, {"tokens": tokens}, taken, (PLAIN,))
        reading = {name: partial(_read, model) for name, model in models.items()}
        yield from figures(READING, {}, interleaved(rounds, reading), (PLAIN,))


def _load(engine: Engine, **settings: Any) -> PreTrainedModel:
    with loading(engine.name):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(engine.name, **settings)
    return model.to(engine.model.device).eval()


def _prompt(model: PreTrainedModel, tokens: int) -> torch.Tensor:
    return torch.arange(100, 100 + tokens, device=model.device)


def _decode(model: PreTrainedModel, tokens: int) -> float:
    cache = new_cache(room=_PROMPT + tokens)
    token = prefill(model, _prompt(model, _PROMPT), cache).argmax()[None]
    begun = time.perf_counter()
    for _ in range(tokens):
        token = prefill(model, token, cache).argmax()[None]
    token.item()  # waits for a GPU
    return tokens / (time.perf_counter() - begun)


def _decode_static(model: PreTrainedModel, forward: Any, tokens: int) -> float:
    cache = StaticCache(config=model.config, max_cache_len=_PROMPT + tokens)
    prompt = _prompt(model, _PROMPT)[None]
    token = model(input_ids=prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
    begun = time.perf_counter()
    for _ in range(tokens):
        token = forward(input_ids=token, past_key_values=cache).logits[:, -1:].argmax(-1)
    token.item()
    return tokens / (time.perf_counter() - begun)


def _read(model: PreTrainedModel) -> float:
    begun = time.perf_counter()
    prefill(model, _prompt(model, _READ), new_cache(room=_READ)).argmax().item()
    return time.perf_counter() - begun

"""Injection as the paper describes it: whole files, layer by layer, before the prompt.

The method of LAG (arXiv 2505.14398, sections 3.2 and 3.3), in the straightforward way: the file of
each log is loaded whole, each layer's keys are rotated and the logs concatenated, a cache is built
of them, and the model reads all of the prompt after it. Written for this comparison.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from lag_integrations.engine.engine import Engine
from lag_integrations.kv.forward import prefill
from lag_integrations.kv.segment import Segment


class PaperMethod:
    """For models that rotate halves of all dimensions, as Llama does.

    Args:
        engine: The model.
        folder: Where files are kept.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        group = engine.positions.groups[0]
        kernel = group.kernels[0]
        self.fits = (
            len(engine.positions.groups) == 1
            and kernel is not None
            and (kernel.pairing, kernel.width, kernel.sign) == ("half", group.dims[0], 1)
            and group.has_keys
        )
        self._source = group.sources[0][0]

    def save(self, segments: Sequence[Segment]) -> list[Path]:
        """Write segments, a tensor a layer."""
        files = []
        for number, segment in enumerate(segments):
            keys, values = segment.slots[0]
            tensors = {}
            for layer in range(len(keys)):
                tensors[f"{layer}.keys"] = keys[layer].cpu().contiguous()
                tensors[f"{layer}.values"] = values[layer].cpu().contiguous()
            file = self._folder / f"{number}.safetensors"
            save_file(tensors, file)
            files.append(file)
        return files

    def first_token(self, files: Sequence[Path], prompt_ids: Sequence[int]) -> float:
        """Return the seconds from files to the logits of the first token."""
        begun = time.perf_counter()
        model, device = self._engine.model, self._engine.model.device
        loaded = [load_file(file, device=str(device)) for file in files]
        lengths = [tensors["0.keys"].shape[1] for tensors in loaded]
        assert self._source is not None
        cos, sin = self._source.cos_sin(torch.arange(sum(lengths), device=device))
        cos, sin = torch.cat([cos, cos], dim=1), torch.cat([sin, sin], dim=1)
        cache = DynamicCache()
        with torch.no_grad():
            for layer in range(len(loaded[0]) // 2):
                keys = torch.cat([tensors[f"{layer}.keys"] for tensors in loaded], dim=1)
                values = torch.cat([tensors[f"{layer}.values"] for tensors in loaded], dim=1)
                first, second = keys.chunk(2, dim=-1)
                keys = keys * cos + torch.cat([-second, first], dim=-1) * sin
                cache.update(keys[None].to(values.dtype), values[None], layer)
            prefill(model, torch.tensor(list(prompt_ids)), cache).argmax().item()
        return time.perf_counter() - begun

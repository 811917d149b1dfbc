"""Models and tokenizers from the hub or from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lag_integrations.engine.quantization.quantize import quantize
from lag_integrations.engine.quantization.scheme import Quantization, check_device, check_scheme
from lag_integrations.errors import UnsupportedModelError
from lag_integrations.runtime.gguf_file import forget_gguf
from lag_integrations.runtime.loading_lock import loading
from lag_integrations.runtime.own_thread import in_own_thread

_OF_BOTH = ("revision", "token", "local_files_only", "trust_remote_code", "cache_dir", "gguf_file")
"""Arguments of ``from_pretrained`` that the tokenizer is given, too."""


def load_model(
    model: str | Path,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    quantization: Quantization | None,
    quiet: bool,
    model_kwargs: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; arguments and errors are those of `Engine.load`."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if quantization is not None:  # before the model is loaded, which takes long
        check_scheme(quantization)
        if "device_map" not in model_kwargs:
            check_device(quantization, place)
    source = Path(model)
    if source.suffix == ".gguf":
        model, model_kwargs = source.parent, {**model_kwargs, "gguf_file": source.name}
    if "gguf_file" in model_kwargs and place.type == "cpu":
        if "quantization_config" not in model_kwargs:
            quantization = quantization or "auto"
        dtype = torch.float32 if dtype == "auto" else dtype  # in which 4 bits can be seen again
    if str(model).startswith(("/", "./", "../", "~")) and not source.exists():
        raise UnsupportedModelError(
            f"There is no {source}. Give the folder of a model, a GGUF file, or a hub id like "
            "HuggingFaceTB/SmolLM2-1.7B-Instruct."
        )
    tokenizer_kwargs = {key: model_kwargs[key] for key in _OF_BOTH if key in model_kwargs}

    def load() -> PreTrainedModel:
        loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype, **model_kwargs)
        if "gguf_file" in model_kwargs:
            forget_gguf(loaded)
            loaded.name_or_path = str(source)
        if "device_map" not in model_kwargs and "quantization_config" not in model_kwargs:
            loaded.to(place)
        if quantization is not None:
            quantize(loaded, quantization)
        return loaded

    try:
        with loading(source, quiet=quiet):
            tokenizer = AutoTokenizer.from_pretrained(str(model), **tokenizer_kwargs)
            return in_own_thread(load), tokenizer
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UnsupportedModelError(
            f"The model {str(source)!r} cannot be loaded as a causal language model. Give a hub "
            f"id, a local folder, a GGUF file, or a loaded model and tokenizer. ({error})"
        ) from error

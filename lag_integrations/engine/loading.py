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

from lag_integrations.errors import UnsupportedModelError
from lag_integrations.runtime.loading_lock import loading
from lag_integrations.runtime.own_thread import in_own_thread

_OF_BOTH = ("revision", "token", "local_files_only", "trust_remote_code", "cache_dir")
"""Arguments of ``from_pretrained`` that the tokenizer is given, too."""


def load_model(
    model: str | Path,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    quiet: bool,
    model_kwargs: dict[str, Any],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer; arguments and errors are those of `Engine.load`."""
    tokenizer_kwargs = {key: model_kwargs[key] for key in _OF_BOTH if key in model_kwargs}
    try:
        with loading(model, quiet=quiet):
            tokenizer = AutoTokenizer.from_pretrained(str(model), **tokenizer_kwargs)
            loaded = in_own_thread(
                lambda: AutoModelForCausalLM.from_pretrained(
                    str(model), dtype=dtype, **model_kwargs
                )
            )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UnsupportedModelError(
            f"The model {str(model)!r} cannot be loaded as a causal language model. Give a hub "
            f"id, a local folder, or a loaded model and tokenizer. ({error})"
        ) from error
    if "device_map" not in model_kwargs and "quantization_config" not in model_kwargs:
        loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return loaded, tokenizer

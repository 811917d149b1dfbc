"""What is left of a GGUF file's format on a model that was loaded from it."""

from __future__ import annotations

from transformers import PreTrainedModel


def forget_gguf(model: PreTrainedModel) -> None:
    """Make a model whose GGUF weights were dequantised while loading one like any other.

    The loader leaves its quantizer behind, which refuses that the model is saved or moved, and its
    settings in the config, which make the dense weights look quantised.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

"""The weights of a loaded model, in 8 or 4 bits."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import PreTrainedModel

from lag_integrations.engine.quantization import int4, int8
from lag_integrations.engine.quantization.int8_dot import Int8DotLinear, are_exact, pays
from lag_integrations.engine.quantization.scheme import Quantization, check_device
from lag_integrations.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

_MANY = 0.5
"""Share of weights that stay as they are, from which on the user is told."""


def quantize(model: PreTrainedModel, scheme: Quantization) -> None:
    """Keep the weights of a model's linear layers, and of its embedding, in fewer bits.

    Only weights are quantised: what is multiplied with them is bf16, or integers of 16 bits
    (`Int8DotLinear`), and everything else is as it was.
    Layers that are not plain ``nn.Linear`` (the experts of mixtures, GPT-2's ``Conv1D``), or whose
    shape the kernels do not take, stay as they are.

    Args:
        model: A model on a CPU. It is changed.
        scheme: How many bits.

    Raises:
        UnsupportedModelError: The model is not on a CPU, or is quantised already.
    """
    check_device(scheme, model.device)
    if getattr(model, "hf_quantizer", None) is not None:
        raise UnsupportedModelError(
            f"quantization={scheme!r}: the weights of this model are quantised already. Leave one "
            "of the two out."
        )
    output = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    whole = sum(weight.numel() for weight in model.parameters())
    small: dict[int, nn.Module] = {}
    with torch.no_grad():
        for path in _linear_layers(model):  # by name, so that each layer's memory is free at once
            layer = model.get_submodule(path)
            assert isinstance(layer, nn.Linear)
            if id(layer) not in small:
                small[id(layer)] = _quantized(layer, "int8" if layer is output else scheme)
            model.set_submodule(path, small[id(layer)])
        # A model without any parameters has no device and no dtype for transformers.
        others = any(weight is not embedding.weight for weight in model.parameters())
        if type(embedding) is nn.Embedding and others:
            rows = int8.quantize_rows(embedding.weight)
            model.set_input_embeddings(int8.Int8Embedding(*rows, embedding.weight.dtype))
    left = sum(weight.numel() for weight in model.parameters()) / whole
    if left > _MANY:
        logger.warning(
            "quantization=%r: %.0f %% of the weights of %s stay as they are, since they are not "
            "in plain linear layers.",
            scheme,
            100 * left,
            type(model).__name__,
        )


def _linear_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers to quantise; a layer that is used twice has two."""
    modules = model.named_modules(remove_duplicate=False)
    return [path for path, layer in modules if type(layer) is nn.Linear and int8.fits(layer)]


def _quantized(layer: nn.Linear, scheme: Quantization) -> nn.Module:
    four = scheme == "int4" or (scheme == "auto" and int4.is_lossless(layer.weight))
    if four and int4.fits(layer):
        return int4.Int4Linear(layer)
    rows = int8.quantize_rows(layer.weight)
    make = Int8DotLinear if pays(layer) and are_exact() else int8.Int8Linear
    return make(*rows, layer.bias)

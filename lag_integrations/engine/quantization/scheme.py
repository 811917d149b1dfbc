"""How many bits the weights of a model keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from lag_integrations.errors import UnsupportedModelError

if TYPE_CHECKING:  # the command line knows the schemes before torch is loaded
    import torch

Quantization = Literal["int8", "int4", "auto"]
"""``int8``: 8 bits a weight. ``int4``: 4, but for output layer and embedding, which keep 8.
``auto``: 4 in each layer that loses nothing by it, as those of a 4-bit GGUF file; else 8."""


def check_scheme(scheme: str) -> None:
    """Refuse what is no `Quantization`.

    Raises:
        UnsupportedModelError: It is none; says which there are.
    """
    if scheme not in get_args(Quantization):
        raise UnsupportedModelError(
            f"quantization={scheme!r} is not known. Give one of "
            f"{', '.join(map(repr, get_args(Quantization)))}, or leave it out."
        )


def check_device(scheme: str, device: torch.device) -> None:
    """Refuse weights that are not on a CPU.

    Raises:
        UnsupportedModelError: They are elsewhere; says what to give instead.
    """
    if device.type != "cpu":
        raise UnsupportedModelError(
            f"quantization={scheme!r} is for models on a CPU, and this one is on "
            f"{device.type!r}. Leave it out, or give device='cpu'; on a GPU, give "
            "model_kwargs={'quantization_config': …}."
        )

"""Segments as 8-bit integers: steps of 1/127 of the largest value of a row."""

from __future__ import annotations

import torch

from lag_integrations.kv.codecs.scaled import Scaled


class Int8(Scaled):
    """Symmetric int8, from -127 to 127."""

    @property
    def name(self) -> str:
        """``int8``."""
        return "int8"

    @property
    def largest(self) -> float:
        """-128 is left out, so that both signs reach as far."""
        return 127.0

    def round(self, quotients: torch.Tensor) -> torch.Tensor:
        """Round to nearest; the cast alone would cut off the fraction."""
        return quotients.round_().to(torch.int8)

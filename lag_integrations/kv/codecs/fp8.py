"""Segments as 8-bit floats: relative precision, as the model's own dtype has it."""

from __future__ import annotations

import torch

from lag_integrations.kv.codecs.scaled import Scaled


class Fp8(Scaled):
    """float8_e4m3fn, scaled so that its range is used: 4 significant bits, small values too."""

    @property
    def name(self) -> str:
        """``fp8``."""
        return "fp8"

    @property
    def largest(self) -> float:
        """The largest finite float8_e4m3fn."""
        return 448.0

    def round(self, quotients: torch.Tensor) -> torch.Tensor:
        """Round to nearest, as the cast does."""
        return quotients.to(torch.float8_e4m3fn)

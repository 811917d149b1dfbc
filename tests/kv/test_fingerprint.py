"""Weights that are no plain tensors."""

from __future__ import annotations

import torch
from torch.testing._internal.two_tensor import TwoTensor

from lag_integrations import Engine
from tests.conftest import random_model


def test_quantised_weights_count_with_all_their_parts(engine):
    def fingerprint(*parts: float) -> str:
        model = random_model(engine.tokenizer)
        values = [torch.full((3, 5), part) for part in parts]
        model.register_buffer("scales", TwoTensor(*values))
        return Engine(model, engine.tokenizer).fingerprint.id

    ids = [fingerprint(*parts) for parts in ((1.0, 2.0), (1.0, 2.0), (1.0, 3.0), (2.0, 1.0))]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3

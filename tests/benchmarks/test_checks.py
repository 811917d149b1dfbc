"""What checks cost, measured with a tiny model."""

from __future__ import annotations

import pytest

from benchmarks.checks import measure
from tests.store.model import hash_embedder, tiny_engine


def test_the_parts_are_timed():
    cost = measure(tiny_engine(), 2, embedder=hash_embedder, rounds=1)
    parts = (cost.file_hash, cost.comparison, cost.salt, cost.control_tokens)
    assert all(0 < part < cost.first_token for part in parts)
    assert 0 < cost.share_held < 1
    safety = cost.file_hash + cost.comparison + 2 * cost.salt + cost.control_tokens
    assert cost.share == pytest.approx(safety / cost.first_token)

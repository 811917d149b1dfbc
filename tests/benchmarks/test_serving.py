"""The measurement of `kvlog serve`, in small."""

from __future__ import annotations

import asyncio

from benchmarks.serving import load, own_cost
from tests.serving.conftest import serving


def test_own_cost(embedder):
    taken = own_cost(3, embedder)
    assert [len(values) for values in taken.values()] == [3, 3]
    assert all(value > 0 for values in taken.values() for value in values)


def test_load(small, tmp_path, embedder):
    from lag_integrations import KVLogMemory

    def open_memory(namespace):
        return KVLogMemory(tmp_path / "memory", namespace=namespace, embedder=embedder)

    with serving(small, open_memory) as server:
        seen = asyncio.run(load(server.url, "small", clients=3, seconds=0.5, tokens=4))
        assert len(seen.first) == len(seen.whole) >= 3
        assert 4 * len(seen.whole) >= seen.tokens > len(seen.whole)
        assert seen.errors == []
        wrong = asyncio.run(load(server.url, "other", clients=1, seconds=0.2, tokens=4))
        assert wrong.errors
        assert "404" in wrong.errors[0]

"""What a similarity means is measured for the embedder at hand."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import pytest

from lag_integrations import KVLogMemory
from lag_integrations.errors import StoreError
from lag_integrations.store.embedder import Embedder
from lag_integrations.store.relevance import measure as measuring
from lag_integrations.store.relevance.measure import measure, relevance_of
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.traces.terms import terms
from tests.conftest import qa
from tests.store.processes import numbered


def words(texts):
    """Bags of words and of their beginnings."""
    vectors = np.zeros((len(texts), 512), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in terms(text):
            for part in (word, word[:4]):
                vectors[row, sum(part.encode()) * 31 % 512] += 1.0
    return vectors


def test_the_probability_grows_with_similarity_and_words():
    relevance = Relevance(-5.0, 6.0, 3.0)
    assert relevance.of(0.9, 2.0) > relevance.of(0.9, 0.0) > relevance.of(0.2, 0.0)
    assert relevance.of(0.5, 1e9) == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert 0.0 <= relevance.of(-1e9, 0.0) < relevance.of(1e9, 0.0) <= 1.0


@pytest.mark.parametrize("floor", [0.05, 0.5, 0.9])
def test_nothing_below_the_least_similarity_can_be_that_relevant(floor):
    relevance = Relevance(-5.0, 6.0, 3.0)
    least = relevance.least_similarity(floor)
    assert relevance.of(least - 1e-3, 1e9) < floor
    assert relevance.least_similarity(0.0) == -1.0
    assert relevance.least_similarity(1.0) == 1.0
    assert Relevance(0.0, 0.0, 3.0).least_similarity(0.5) == -1.0


def test_the_floor_follows_the_embedder():
    """Some embedders find everything similar: the same texts are as relevant all the same."""
    embedder = Embedder()
    embed_once = cache(embedder.embed)  # both are measured on the same texts

    def usual(texts):
        return embed_once(tuple(texts))

    def crowded(texts):
        """The same, but no similarity is below 0.6."""
        vectors = usual(texts)
        return np.concatenate([vectors, np.full((len(vectors), 1), 2.0)], axis=1)

    known, measured = measure(Embedder(usual)), measure(Embedder(crowded))
    least = known.least_similarity(0.5)
    assert measured.least_similarity(0.5) == pytest.approx((least + 4) / 5, abs=0.01)
    for similarity in (0.2, 0.5, 0.9):
        probability = known.of(similarity, 0.5)
        assert measured.of((similarity + 4) / 5, 0.5) == pytest.approx(probability, abs=0.02)


def test_relevance_without_words():
    embedder = Embedder(words)
    with_words, without = measure(embedder), measure(embedder, words=False)
    assert with_words.words > 0
    assert without.words == 0
    # What words told has to be told by similarity: the floor is another, not the same less words.
    assert without.similarity > with_words.similarity


def test_an_embedder_that_knows_nothing_is_warned_of(caplog):
    def noise(texts):
        return np.random.default_rng(len(texts[0])).standard_normal((len(texts), 32))

    with caplog.at_level(logging.WARNING):
        relevance = measure(Embedder(noise))
    assert "The embedder finds only" in caplog.text
    assert relevance.similarity >= 0
    assert relevance.words >= 0


def test_it_is_measured_once_a_store_and_kept(tmp_path, monkeypatch):
    calls = []

    def counted(embedder):
        calls.append(embedder)
        return Relevance(-4.0, 8.0, 1.0)

    monkeypatch.setattr(measuring, "measure", counted)
    monkeypatch.setattr(measuring, "_measured", [])
    for _ in range(2):
        with KVLogMemory(tmp_path / "m", embedder=words) as memory:
            memory.add(numbered(1))
            memory.flush()
            (found,) = memory.recall(numbered(1).task)
            assert found.relevance > 0.9
            monkeypatch.setattr(measuring, "_measured", [])  # as another process
    assert len(calls) == 1


def test_an_embedder_that_cannot_be_measured_is_refused_until_it_can(tmp_path, monkeypatch):
    def broken(texts):
        vectors = words(texts)
        vectors[["Brightmoor" in text for text in texts]] = bad
        return vectors

    monkeypatch.setattr(measuring, "_measured", [])
    bad = np.nan
    with KVLogMemory(tmp_path / "m", embedder=broken) as memory:
        memory.add(numbered(1))
        for _ in range(2):
            with pytest.raises(StoreError, match="not finite"):
                memory.recall(numbered(1).task)
        bad = 1.0
        memory.flush()
        (found,) = memory.recall(numbered(1).task)
        assert 0.5 < found.relevance < 1.0


def test_the_default_embedder_is_known(monkeypatch):
    """Its figures ship with the package: nobody waits for them."""
    monkeypatch.setattr(measuring, "measure", None)
    embedder = Embedder()
    probe = embedder.embed(["The quick brown fox jumps over the lazy dog."])[0]
    relevance = relevance_of(embedder, probe)
    assert relevance.similarity > 0
    # So similar, nothing is recalled without a rare word in common.
    alone = relevance.of(0.75, 0.0), relevance.of(0.85, 0.0)
    assert alone[0] < 0.5 < alone[1]


def test_relevance_or_similarity_is_the_floor(tmp_path):
    with KVLogMemory(tmp_path / "m", embedder=words) as memory:
        memory.add(qa("How do I renew the library card ?", "At the desk ."))
        memory.flush()
        (found,) = memory.recall("How can I renew a library card ?")
        other = "Which card game is played tonight ?"
        assert memory.recall(other) == []
        (low,) = memory.recall(other, min_relevance=0.0)
        assert low.relevance < 0.5 < found.relevance
        assert memory.recall(other, min_score=low.score - 0.01)[0].id == found.id
        assert memory.recall(other, min_score=low.score + 0.01) == []
        assert memory.recall(other, min_relevance=0.99, min_score=0.0)  # a score comes first

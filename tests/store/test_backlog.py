"""Adders wait for a worker that falls behind, but not for long; nothing waits in memory."""

from __future__ import annotations

import itertools
import threading
import time

import chromadb
import pytest
from chromadb.config import Settings

from lag_integrations import Engine, KVLogMemory
from lag_integrations.engine.encoder import Encoder
from lag_integrations.errors import EncodingError
from tests.store.model import hash_embedder
from tests.store.processes import numbered, open_memory


def test_adders_wait_a_little_and_lose_nothing(tmp_path):
    gate = threading.Event()

    def slow(texts):
        gate.wait(30)
        return hash_embedder(texts)

    with KVLogMemory(tmp_path / "m", embedder=slow, min_score=-1, max_pending=5) as memory:
        begun = time.monotonic()
        for number in range(5):
            memory.add(numbered(number))
        assert time.monotonic() - begun < 0.5, "there is room in the queue"
        begun = time.monotonic()
        key = memory.add(numbered(5))
        assert 0.8 < time.monotonic() - begun < 2, "now it waits, but only so long"
        assert memory.store.ledger.get([key]), "and the trace is on disk all the same"
        threading.Timer(0.2, gate.set).start()
        begun = time.monotonic()
        memory.add(numbered(6))
        assert time.monotonic() - begun < 0.9, "it goes on when the worker has caught up"
        memory.flush()
        assert len(memory.recall("vault", k=10)) == 7


def test_what_was_left_over_is_done_after_reopening(tmp_path):
    def broken(texts):
        raise ConnectionError("no service")

    with KVLogMemory(tmp_path / "m", embedder=broken) as memory:
        memory.add_many(numbered(number) for number in range(3))
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        deadline = time.monotonic() + 30
        while memory.store.embeddings.count() < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert {log.trace.task for log in memory.recall("vault", k=9)} == {
            numbered(number).task for number in range(3)
        }


def test_a_log_that_cannot_be_embedded_holds_up_no_other(tmp_path):
    def picky(texts):
        if any("vault 3 " in text for text in texts):
            raise ValueError("not this one")
        vectors = hash_embedder(texts)
        for row, text in enumerate(texts):
            if "vault 5 " in text:
                vectors[row] = float("nan")
        return vectors

    with KVLogMemory(tmp_path / "m", embedder=picky, min_score=-1) as memory:
        ids = memory.add_many(numbered(number) for number in range(8))
        with pytest.raises(EncodingError, match="2 logs") as caught:
            memory.flush()
        assert ids[3] in str(caught.value)
        assert ids[5] in str(caught.value)
        assert len(memory.recall("vault", k=9)) == 6
        assert memory.verify() == []


def test_an_embedder_that_changes_its_mind_is_refused(tmp_path):
    def fickle(texts):
        vectors = hash_embedder(texts)
        return vectors if "quick brown fox" in texts[0] else vectors[:, :10]

    with KVLogMemory(tmp_path / "m", embedder=fickle) as memory:
        memory.add(numbered(1))
        with pytest.raises(EncodingError, match="48 dimensions"):
            memory.flush()


def test_logs_that_cannot_be_embedded_at_the_head_of_the_queue(tmp_path):
    def picky(texts):
        if any("door" in text for text in texts):
            raise ValueError("SECRET " + texts[0])
        return hash_embedder(texts)

    with KVLogMemory(tmp_path / "m", embedder=picky, min_score=-1) as memory:
        memory.add_many(numbered(number, of="door") for number in range(5))
        memory.add_many(numbered(number) for number in range(5))
        with pytest.raises(EncodingError, match="5 logs") as caught:
            memory.flush()
        assert "SECRET" not in str(caught.value)
        assert len(memory.recall("vault", k=9)) == 5


def test_the_client_of_the_user_stays_open(tmp_path):
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1, index=client) as memory:
        memory.add(numbered(1))
        memory.flush()
        assert len(memory.recall("vault")) == 1
    assert len(client.list_collections()) == 1


@pytest.mark.parametrize("idle", [True, False])
def test_an_answer_that_begins_goes_before_the_next_batch(tmp_path, monkeypatch, idle):
    events = []
    encode_batch = Encoder.encode_batch

    def spy(encoder: Encoder, traces):
        events.append("encode")
        return encode_batch(encoder, traces)

    monkeypatch.setattr(Encoder, "encode_batch", spy)
    monkeypatch.setattr(Engine, "wait_idle", lambda *_: events.append("wait"))
    monkeypatch.setattr(Engine, "idle", property(lambda _: idle))
    monkeypatch.setattr(Encoder, "batch_tokens", property(lambda _: 1))  # each alone
    with open_memory(tmp_path / "m") as memory:
        memory.add_many(numbered(number) for number in range(6))
        end = time.monotonic() + 60
        while events.count("encode") < 6 and time.monotonic() < end:
            time.sleep(0.02)
        assert events.count("encode") == 6
    together = any(pair == ("encode", "encode") for pair in itertools.pairwise(events))
    assert together is idle

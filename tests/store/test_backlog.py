"""Adders wait for a worker that falls behind, but not for long; nothing waits in memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import chromadb
import pytest
from chromadb.config import Settings

from lag_integrations import KVLogMemory
from lag_integrations.errors import EncodingError
from lag_integrations.traces.message import Message
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import numbered


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
        if any("ziggurat" in text for text in texts):
            raise ValueError("SECRET " + texts[0])
        return hash_embedder(texts)

    with KVLogMemory(tmp_path / "m", embedder=picky, min_score=-1) as memory:
        memory.add_many(numbered(number, of="ziggurat") for number in range(5))
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


def test_encoding_goes_on_while_answers_are_written_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr("lag_integrations.memory.segment_indexer._PATIENCE", 0.2)
    engine = tiny_engine()
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        memory.attach(engine)
        asked = [Message(role="user", content="Tell a long story.")]
        stream = engine.stream(
            asked, max_new_tokens=1900, min_new_tokens=1900, do_sample=True, temperature=9.0
        )
        next(stream)
        memory.add_many(numbered(number) for number in range(6))
        end = time.monotonic() + 60
        files: list[Path] = []
        while len(files) < 6 and time.monotonic() < end:
            next(stream)
            files = list(tmp_path.rglob("*.safetensors"))
        assert len(files) == 6
        stream.close()

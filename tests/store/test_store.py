"""What a store does, the same on every backend: SQLite or PostgreSQL, Chroma in or as a server."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from lag_integrations.errors import (
    EmbedderMismatchError,
    EncodingError,
    LogNotFoundError,
    SettingsError,
    TraceError,
)
from lag_integrations.kv.codecs import CODECS
from lag_integrations.store import ledger
from lag_integrations.traces.search_keys import SearchKey
from lag_integrations.traces.trace import Trace
from tests.conftest import qa
from tests.helpers import stored_segments, wait_until
from tests.store.conftest import every_backend, ids, logs_in_index
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import numbered, open_memory

backend = every_backend


def test_a_log_outlives_its_memory(open_store, tiny):
    with open_store() as memory:
        memory.attach(tiny)
        key = memory.add(numbered(1))
        memory.flush()
        (info,) = memory.store.ledger.info()
        assert (info.id, info.state, info.segments) == (key, "indexed", 1)
        assert info.trace.messages == numbered(1).messages
        before = memory.segments(memory.recall("code of vault 1 ?"), tiny)[0]
        assert before.background > 0
    with open_store() as memory:
        found = memory.recall("code of vault 1 ?")
        assert ids(found) == [key]
        after = stored_segments(memory, found, tiny)[0]
        assert torch.equal(before.slots[0][0], after.slots[0][0])
        assert after.background == before.background
        assert memory.verify() == []


def test_what_is_not_merged_is_found_too(open_store):
    with open_store() as memory:
        first = [memory.add(numbered(number)) for number in range(5)]
        memory.flush()
        assert memory.store.embeddings.count(inside=memory.store.index.identity()) == 10
        late = memory.add(numbered(7))
        # The worker embeds it; so few are not merged yet.
        wait_until(lambda: memory.store.embeddings.count() > 10)
        assert ids(memory.recall("What is the code of vault 7 ?", k=1)) == [late]
        assert set(ids(memory.recall("What is the code of vault 7 ?", k=9))) == {late, *first}


LONG = "First install the tools . " + " ".join(f"Then do step {n} with care ." for n in range(40))


def test_a_long_answer_does_not_hide_its_task(open_store):
    """The task is a key of its own: in one embedding with the answer, it would be drowned."""
    task = "How do I set up the environment ?"
    with open_store(min_score=0.5) as memory:
        key = memory.add(qa(task, LONG))
        memory.add_many(numbered(number) for number in range(4))
        memory.flush()
        (found,) = memory.recall(task)
        assert found.id == key
        assert found.score == pytest.approx(1.0, abs=1e-4)
        assert found.key == SearchKey("task", task)


def test_a_log_is_found_by_what_was_done(open_store):
    calls = [{"name": "search", "args": {"customer": "Lind"}, "id": "1"}]
    trace = Trace.from_messages(
        [
            {"role": "user", "content": "Where is my parcel ?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "in Kiel", "tool_call_id": "1"},
            {"role": "assistant", "content": "It is in Kiel ."},
        ]
    )
    with open_store(min_score=0.5) as memory:
        key = memory.add(trace)
        memory.flush()
        (found,) = memory.recall('search {"customer": "Lind"}')
        assert (found.id, found.key.kind) == (key, "step")
        assert ids(memory.recall("Where is my parcel ?")) == [key]  # once, whatever matches


def busy(name, steps):
    """A run with so many steps, which are all about opening a vault."""
    said = [
        {"role": "assistant", "content": f"open vault code {name} {number}"}
        for number in range(steps)
    ]
    answer = {"role": "assistant", "content": "open"}
    return Trace.from_messages([{"role": "user", "content": f"vault {name}"}, *said, answer])


def test_logs_of_many_keys_take_no_places(open_store):
    """The keys that the index gives first are all of five logs: it has to look further."""
    with open_store() as memory:
        keys = memory.add_many(busy(name, 40) for name in "abcde")
        others = memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        found = memory.recall("open vault code", k=6)
        assert {log.id for log in found[:5]} == set(keys)
        assert found[5].id in others
        memory.delete(keys, wait=True)
        assert logs_in_index(memory) == set(others)


def test_a_log_may_be_merged_in_parts(open_store):
    """A step of merging ends in the middle of a log's keys; none of them is forgotten."""
    with open_store() as memory:
        memory.add_many(busy(name, 12) for name in range(40))  # 14 keys each, 512 a step
        memory.flush()
        assert memory.store.embeddings.count(inside=memory.store.index.identity()) == 560
        assert memory.verify() == []
        assert {log.state for log in memory.store.ledger.info()} == {"indexed"}


def test_a_key_that_cannot_be_embedded_costs_no_log(open_store):
    def picky(texts):
        vectors = hash_embedder(texts)
        vectors[["vault a" in text for text in texts]] = 0.0
        return vectors

    with open_store(embedder=picky, diversity=0.3) as memory:
        key = memory.add(busy("a", 3))  # its task and its response are not embedded
        memory.flush()
        (found,) = memory.recall("open vault code")
        assert (found.id, found.key.kind) == (key, "step")
        memory.add(qa("vault a", "vault a"))
        with pytest.raises(EncodingError, match="zero or not finite"):
            memory.flush()


def test_the_same_run_is_one_log(open_store):
    with open_store() as one, open_store() as other:
        assert one.add(numbered(1)) == other.add(numbered(1)) == one.add(numbered(1))
        assert one.add_many([numbered(1), numbered(2), numbered(2)])[0] == other.add(numbered(1))
        counts = {log.trace.task: log.times_seen for log in one.store.ledger.info()}
        assert counts == {numbered(1).task: 5, numbered(2).task: 2}


def test_a_rare_log_is_found_among_many(open_store):
    """The nearest of the index are all filtered out: it has to look further."""
    with open_store() as memory:
        memory.add_many(numbered(number) for number in range(300))
        rare = memory.add(qa("Quite another thing .", "Yes .", metadata={"rare": True}))
        memory.flush()
        assert memory.store.embeddings.count(inside=memory.store.index.identity()) == 602
        found = memory.recall("What is the code of vault 3 ?", k=2, where={"rare": True})
        assert ids(found) == [rare]


def test_diversity(open_store):
    with open_store() as memory:
        for word in ("one", "two", "three"):
            memory.add(qa("Where is the red door ?", f"It is behind the house {word}"))
        memory.add(qa("Where is the red boat today ?", "On the lake ."))
        memory.flush()
        near = memory.recall("Where is the red door ?", k=2)
        assert all("door" in log.trace.task for log in near)
        apart = memory.recall("Where is the red door ?", k=2, diversity=0.6)
        assert ["door" in log.trace.task for log in apart] == [True, False]
        with pytest.raises(SettingsError, match="from 0 to 1"):
            memory.recall("Where is the red door ?", diversity=1.5)


def test_the_next_logs_take_the_places_of_those_that_are_skipped(open_store):
    with open_store() as memory:
        memory.add_many(qa(f"the red door {'x ' * number}", "Lima") for number in range(40))
        memory.flush()
        asked = {"skip": lambda trace: trace.task.count("x") < 20}
        for diversity in (0.0, 0.5):
            found = memory.recall("the red door", k=3, diversity=diversity, **asked)
            assert len(found) == 3
            assert all(log.trace.task.count("x") >= 20 for log in found)
        assert len(memory.recall("the red door", k=30, **asked)) == 20
        memory.flush()
        infos = memory.store.ledger.info()
        assert {info.times_recalled > 0 for info in infos if info.trace.task.count("x") < 20} == {
            False
        }


def test_namespaces(open_store, tiny):
    with open_store(namespace="a") as one, open_store(namespace="b") as other:
        one.attach(tiny)
        other.attach(tiny)
        key = one.add(numbered(1))
        assert other.add(numbered(1)) != key
        one.flush()
        other.flush()
        found = one.recall("vault")
        assert ids(found) == [key]
        assert key not in ids(other.recall("vault"))
        with pytest.raises(LogNotFoundError):
            other.segments(found)
        with pytest.raises(LogNotFoundError):
            other.feedback(key, helped=True)
        assert other.delete(key).logs == 0
        assert ids(one.recall("vault")) == [key]


def test_segments_of_several_models_and_codecs(open_store, tiny):
    from tests.store.model import tiny_engine

    other = tiny_engine(seed=1)
    for codec in ("native", "int8"):
        for engine in (tiny, other):
            with open_store(codec=codec) as memory:
                memory.attach(engine)
                memory.add(numbered(1))
                memory.flush()
    assert "int8" in CODECS
    with open_store(codec="int8") as memory:
        stored = list(memory.store.segments.all_files())
        assert len({key for key, _, _ in stored}) == 4
        found = memory.recall("vault")
        assert stored_segments(memory, found, tiny)[0].fingerprint == tiny.fingerprint.id
        assert stored_segments(memory, found, other)[0].fingerprint == other.fingerprint.id
        memory.attach(other)
        assert memory.store.segments.forget_others(stored[0][0]) == 3
        memory.flush()
        assert memory.verify() == []


def test_a_changed_embedder(open_store):
    def other(texts):
        return np.concatenate([hash_embedder(texts), hash_embedder(texts)], axis=1)

    for namespace in ("a", "b"):
        with open_store(namespace=namespace) as memory:
            memory.add(numbered(1))
            memory.flush()
    with open_store(namespace="a", embedder=other) as memory:
        with pytest.raises(EmbedderMismatchError, match=r"48 dimensions.*\(96\).*reindex"):
            memory.recall("vault")
        memory.reindex()
        assert len(memory.recall("vault")) == 1
        assert memory.verify() == []
    with open_store(namespace="b", embedder=other) as memory:
        memory.flush()
        assert len(memory.recall("vault")) == 1
        assert memory.verify() == []
    with open_store(namespace="b") as memory, pytest.raises(EmbedderMismatchError):
        memory.recall("vault")


def test_a_store_that_was_reindexed_elsewhere(open_store):
    """The same dimension, another embedder: an open memory must not mix them."""

    def other(texts):
        return hash_embedder(texts)[:, ::-1].copy()

    with open_store() as old, open_store(embedder=other) as new:
        first = old.add(numbered(1))
        old.flush()
        new.reindex()
        with pytest.raises(EmbedderMismatchError):
            old.recall("vault")
        second = old.add(numbered(2))
        with pytest.raises(EmbedderMismatchError):
            old.flush()
        new.flush()
        assert set(ids(new.recall("vault"))) == {first, second}
        assert new.verify() == []


def test_concurrent_adders_of_the_same_logs(open_store):
    """In different orders, which must not end in a deadlock; long metadata, which must not fail."""
    long = "".join(chr(0x4E00 + number % 2_000) for number in range(6_000))
    traces = [
        qa(f"What about {number} ?", "Fine .", metadata={"long": long, "number": number})
        for number in range(40)
    ]
    errors = []
    with open_store() as one, open_store() as other:

        def add(memory, turn):
            try:
                memory.add_many(traces[turn:] + traces[:turn])
                memory.add(traces[turn])
            except Exception as error:
                errors.append(error)

        threads = [
            threading.Thread(target=add, args=(memory, turn))
            for memory in (one, other)
            for turn in (0, 10, 20, 30)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        one.flush()
        assert sorted(log.times_seen for log in one.store.ledger.info()) == [8] * 36 + [10] * 4
        assert len(one.recall("What about it ?", k=50, where={"number": {"$gte": 30}})) == 10


def test_many_threads_want_a_segment_that_is_not_there_yet(open_store, tiny):
    with open_store() as memory:
        memory.add(numbered(1))
        memory.flush()
        found = memory.recall("vault")
        got = []
        threads = [
            threading.Thread(target=lambda: got.append(memory.segments(found, tiny)))
            for _ in range(45)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 45
        assert len(list(memory.store.segments.all_files())) == 1


def test_what_is_acknowledged_can_be_read_back(open_store, monkeypatch):
    monkeypatch.setattr(ledger, "MAX_TRACE_BYTES", 2_000)
    with open_store() as memory:
        with pytest.raises(TraceError, match="more than 2,000 bytes"):
            memory.add_many([numbered(1), qa("long", "é" * 1_500)])
        assert list(memory.store.ledger.ids()) == []
        deep: dict = {"x": 1}
        for _ in range(90):
            deep = {"x": deep}
        (kept,) = memory.add_many([qa("deep", "answer", metadata={"deep": deep, "half": "\ud800"})])
        memory.flush()
        assert memory.verify() == []
        assert memory.get(kept)[0].trace.metadata["deep"] == deep


def test_every_attached_model_has_its_segments(tmp_path):
    first, second = tiny_engine(seed=1), tiny_engine(seed=2)
    with open_memory(tmp_path / "m") as memory:
        memory.attach(first)
        memory.attach(second)
        memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        found = memory.get(memory.store.ledger.ids())
        for engine in (first, second):
            assert {one.fingerprint for one in stored_segments(memory, found, engine)} == {
                engine.fingerprint.id
            }
        memory.attach(first)  # models that alternate leave nothing to do
        assert memory._pending() == 0


def test_a_model_that_was_loaded_twice_is_one_model(tmp_path, monkeypatch):
    """Two objects that take turns write nothing to the ledger, and do not wake the worker."""
    first, second = tiny_engine(seed=1), tiny_engine(seed=1)
    with open_memory(tmp_path / "m") as memory:
        memory.attach(first)
        written = []
        monkeypatch.setattr(memory.store.metadata, "add_model", lambda *_: written.append(1))
        for engine in (second, first, second):
            memory.attach(engine)
        assert not written
        assert second in memory._engines


def test_a_memory_that_nobody_closes_is_released(tmp_path):
    memory = open_memory(tmp_path / "m")
    memory.add(numbered(1))
    memory.flush()
    worker, gone = memory._worker._thread, weakref.ref(memory)
    del memory
    gc.collect()
    assert gone() is None
    worker.join(30)
    assert not worker.is_alive()
    with open_memory(tmp_path / "m") as again:
        assert len(again.recall("vault")) == 1

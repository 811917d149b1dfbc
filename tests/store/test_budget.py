"""Budgets: what is evicted, and what is not."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch

from lag_integrations import KVLogMemory
from lag_integrations.errors import (
    StoreError,
)
from lag_integrations.store.budget import Budget
from tests.helpers import stored_segments
from tests.store.conftest import logs_in_index
from tests.store.model import hash_embedder
from tests.store.processes import numbered


def test_the_number_of_logs_is_kept(open_store, tiny):
    with open_store(max_logs=20) as memory:
        memory.attach(tiny)
        dear = memory.add(numbered(0))
        memory.feedback(dear, helped=True)
        for number in range(1, 60):
            memory.add(numbered(number))
        memory.flush()
        assert memory.store.ledger.count() == 20
        assert logs_in_index(memory) == set(memory.store.ledger.ids())
        assert len(list(memory.store.segment_files.names(""))) == 20
        kept = {log.trace.task for log in memory.store.ledger.info()}
        assert numbered(0).task in kept, "what helped is kept"
        assert numbered(59).task in kept, "what is new is kept"
        assert numbered(1).task not in kept


def test_what_anybody_wrote_evicts_nothing(open_store, tmp_path, monkeypatch):
    key = bytes(range(32))
    with KVLogMemory(tmp_path / "other", embedder=hash_embedder) as other:
        other.add_many(numbered(number) for number in range(100, 120))
        other.export_to(tmp_path / "a.lag", key=key)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 7_200)
    with open_store(max_logs=20) as memory:
        honest = memory.add_many(numbered(number) for number in range(20))
        memory.feedback(honest[:10], helped=True)
        monkeypatch.undo()
        memory.import_from(tmp_path / "a.lag")
        memory.prune()
        assert set(memory.store.ledger.ids()) == set(honest)
        memory.import_from(tmp_path / "a.lag")
        judged = memory.store.ledger.info(limit=1)[0].id
        memory.feedback(judged, outcome="success")
        memory.prune()
        kept = set(memory.store.ledger.ids())
        assert judged in kept, "new, and no longer anybody's"
        assert len(kept - set(honest)) == 1
        memory.import_from(tmp_path / "a.lag", key=key)
        memory.prune()
        kept = set(memory.store.ledger.ids())
        assert len(kept - set(honest)) > 1, "what a key vouches for is like others"


def test_an_old_log_counts_as_used_when_it_is_imported(open_store, tmp_path, monkeypatch):
    key, now = bytes(range(32)), time.time
    monkeypatch.setattr(time, "time", lambda: now() - 20_000)
    with KVLogMemory(tmp_path / "other", embedder=hash_embedder) as other:
        other.add_many(numbered(number) for number in range(100, 110))
        other.export_to(tmp_path / "a.lag", key=key)
    monkeypatch.setattr(time, "time", lambda: now() - 10_000)
    with open_store(max_logs=20) as memory:
        memory.add_many(numbered(number) for number in range(20))
        monkeypatch.undo()
        memory.import_from(tmp_path / "a.lag", key=key)
        memory.prune()
        kept = {log.trace.task for log in memory.store.ledger.info()}
        assert {numbered(number).task for number in range(100, 110)} < kept


def test_what_was_recalled_a_moment_ago_is_not_evicted(open_store):
    with open_store(max_logs=20) as memory:
        memory.add_many(numbered(number) for number in range(20))
        memory.flush()
        memory._worker.stop()  # it would record the use, too
        memory.add_many(numbered(number) for number in range(20, 25))
        (oldest,) = memory.recall("What is the code of vault 0 ?", k=1)
        memory.prune()
        assert memory.store.ledger.count() == 20
        assert memory.get(oldest.id)


def test_bytes_are_kept_and_evicted_segments_come_back(open_store, tiny):
    with open_store(max_bytes=100_000) as memory:
        memory.attach(tiny)
        memory.add_many(numbered(number) for number in range(60))
        memory.flush()
        traces, segments = memory.store.evictor.nbytes()
        files = list(memory.store.segment_files.names(""))
        assert 91_000 <= traces + segments <= 100_000  # one segment has 8 kB
        sizes = {file: nbytes for _, file, nbytes in memory.store.segments.all_files()}
        assert sizes.keys() == set(files)
        assert segments == sum(
            len(memory.store.segment_files.get(file, nbytes)) for file, nbytes in sizes.items()
        )
        assert memory.store.ledger.count() == 60, "traces fit, so all logs stay"
        assert 0 < len(files) < 60
        oldest = memory.recall("What is the code of vault 0 ?", k=1)
        assert stored_segments(memory, oldest) == [None]
        assert torch.equal(memory.segments(oldest)[0].token_ids, tiny.encode(numbered(0)).token_ids)
        assert stored_segments(memory, oldest) != [None]
        memory.flush()
        assert sum(memory.store.evictor.nbytes()) <= 100_000
        assert stored_segments(memory, oldest) != [None], "what was recalled lately stays"
        assert memory.verify() == []


def test_traces_beyond_the_bytes_are_deleted(open_store):
    with open_store(max_bytes=5_000) as memory:
        memory.add_many(numbered(number) for number in range(30))
        memory.flush()
        assert 0 < sum(memory.store.evictor.nbytes()) <= 5_000


def test_old_logs_go(open_store, monkeypatch):
    with open_store(ttl=timedelta(hours=1)) as memory:
        memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        assert len(memory.recall("vault")) == 3
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 3601)
        assert memory.recall("vault") == []
        assert memory.store.ledger.count() == 3, "not deleted yet, but not recalled"
        fresh = memory.add(numbered(9))
        memory.prune()
        assert list(memory.store.ledger.ids()) == [fresh]


@pytest.mark.parametrize(
    "settings", [{"max_bytes": 0}, {"max_logs": -1}, {"ttl": 0}, {"codec": "int5"}]
)
def test_bad_settings_are_refused(open_store, settings):
    with pytest.raises(StoreError):
        open_store(**settings)


def test_two_memories_with_one_budget(open_store, monkeypatch):
    with open_store(max_logs=30) as one, open_store(max_logs=30) as other:
        for memory in (one, other):
            memory._worker.stop()  # it would evict, too
        one.add_many(numbered(number) for number in range(45))
        other.add_many(numbered(number) for number in range(45, 90))
        count = one.store.ledger.count
        evicting = threading.Thread(target=other.prune)

        def counted() -> int:
            """The other begins between the count of the logs and their eviction."""
            monkeypatch.setattr(one.store.ledger, "count", count)
            found = count()
            evicting.start()
            evicting.join(0.5)
            return found

        monkeypatch.setattr(one.store.ledger, "count", counted)
        one.prune()
        evicting.join()
        assert 29 <= count() <= 30


def test_an_evicted_segment_that_was_read_as_text_comes_back(open_store, tiny):
    with open_store() as memory:
        memory.attach(tiny)
        memory.add(numbered(1))
        memory.flush()
        found = memory.recall("vault")
        memory.store.evictor.enforce(Budget(max_bytes=1_000))
        memory.flush()
        assert stored_segments(memory, found) == [None]
        memory.flush()
        assert stored_segments(memory, found) != [None]

"""Deletion of logs, and purging."""

from __future__ import annotations

import pytest

from lag_integrations.errors import (
    LogNotFoundError,
    StoreError,
)
from tests.conftest import qa
from tests.store.conftest import every_backend, ids, logs_in_index, shown
from tests.store.processes import numbered

backend = every_backend


def test_logs_are_deleted_by_their_metadata(open_store):
    with open_store() as memory, open_store(namespace="other") as other:
        traces = [shown(0, "a", "b"), shown(1, "b"), shown(2, "c"), qa("x", "y")]
        zero, *_, plain = memory.add_many(traces)
        other.add_many(traces)
        memory.flush()
        for wrong in ({}, {"where": {}}, {"where": {"a": []}}):
            with pytest.raises(StoreError):
                memory.delete(**wrong)
        with pytest.raises(StoreError, match="either"):
            memory.delete([zero], where={"sources": "b"})
        assert memory.delete(where={"sources": "d"}).logs == 0
        assert memory.delete(where={"sources": {"$in": ["a", "b-1"]}}).logs == 2
        assert memory.delete(where={"sources": "/c"}, wait=True).logs == 1
        assert list(memory.store.ledger.ids()) == [plain]
        assert logs_in_index(memory) == {plain}
        assert other.store.ledger.count() == 4


def test_deletion_is_complete(open_store, tiny):
    with open_store() as memory:
        memory.attach(tiny)
        kept, gone = memory.add(numbered(1)), memory.add(numbered(2))
        memory.flush()
        found = memory.recall("vault")
        memory.segments(found)
        assert len(memory.store.segment_cache) == 2
        assert memory.delete([gone, "unknown"], wait=True).logs == 1
        assert memory.delete(gone).logs == 0
        assert ids(memory.recall("vault")) == [kept]
        assert logs_in_index(memory) == {kept}
        assert (
            len(list(memory.store.segment_files.names(""))) == len(memory.store.segment_cache) == 1
        )
        with pytest.raises(LogNotFoundError):
            memory.segments(found)
        assert memory.verify() == []
        assert memory.add(numbered(2)) == gone  # it may come back, as a new log
        memory.flush()
        assert set(ids(memory.recall("vault"))) == {kept, gone}
        assert logs_in_index(memory) == {kept, gone}


def test_purge_leaves_nothing_and_nobody_else_is_touched(open_store, tiny, tmp_path):
    with open_store(namespace="mine") as mine, open_store(namespace="theirs") as theirs:
        for memory in (mine, theirs):
            memory.attach(tiny)
            memory.add(numbered(1))
        secret = qa("Who knows the zanzibar password ?", "Nobody but me .")
        mine.add(secret)
        mine.flush()
        theirs.flush()
        assert mine.purge().logs == 2
        assert mine.recall("vault") == []
        assert (
            mine.store.ledger.count()
            == mine.store.embeddings.count()
            == len(mine.store.segment_cache)
            == 0
        )
        assert logs_in_index(mine) == set()
        assert len(theirs.recall("vault")) == 1
        assert len(list(theirs.store.segment_files.names(""))) == 1
        assert mine.verify() == theirs.verify() == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"zanzibar" in path.read_bytes()]

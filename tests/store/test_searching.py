"""What a search costs, and in which order it gives what it found."""

from __future__ import annotations

import pytest

from lag_integrations import KVLogMemory
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import numbered


@pytest.fixture(scope="module")
def thousands(tmp_path_factory):
    """A memory of some thousand logs, two of them of one task."""
    task = "Which harbour has the tallest crane"
    with KVLogMemory(tmp_path_factory.mktemp("many") / "m", embedder=hash_embedder) as memory:
        memory.add(qa(task, "Kiel ."))
        memory.add(qa(task, "Lima ."))
        memory.add_many(numbered(number) for number in range(3_000))
        memory.flush()
        yield memory, task


def test_a_log_that_is_left_out_costs_no_look_at_the_whole_store(thousands, monkeypatch):
    memory, task = thousands
    asked = []
    search = memory.store.index.search

    def counted(vector, entries):
        asked.append(entries)
        return search(vector, entries)

    monkeypatch.setattr(memory.store.index, "search", counted)
    (found,) = memory.recall(task, newest_only=True)
    assert found.log.last_response == "Lima ."
    assert memory.recall(task, skip=lambda trace: trace.task == task) == []
    assert len(asked) == 2
    assert max(asked) < 500

"""What a search costs, and in which order it gives what it found."""

from __future__ import annotations

import pytest

from lag_integrations import KVLogMemory
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import numbered


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A memory of over a thousand logs, two of them of one task."""
    task = "Which harbour has the tallest crane"
    with KVLogMemory(tmp_path_factory.mktemp("many") / "m", embedder=hash_embedder) as memory:
        memory.add(qa(task, "Kiel ."))
        memory.add(qa(task, "Lima ."))
        memory.add_many(numbered(number) for number in range(1_200))
        memory.flush()
        yield memory, task


def test_a_log_that_is_left_out_costs_no_look_at_the_whole_store(many, monkeypatch):
    memory, task = many
    asked = []
    search = memory.store.index.search

    def counted(vector, entries):
        asked.append(entries)
        return search(vector, entries)

    monkeypatch.setattr(memory.store.index, "search", counted)
    (found,) = memory.recall(task, newest_only=True)
    assert found.trace.last_response == "Lima ."
    assert memory.recall(task, skip=lambda trace: trace.task == task) == []
    assert len(asked) == 2
    assert max(asked) < 500


def test_a_task_that_comes_daily_is_not_read_again_and_again(tmp_path, monkeypatch):
    """Each of its runs fits; the newest is given, and others of other tasks beside it."""
    task = "Which ships are in the harbour today ?"
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1.0) as memory:
        memory.add(qa("Which ships are in the other harbour ?", "None ."))
        daily = memory.add_many(qa(task, f"The ships are {day} .") for day in range(300))
        memory.embed_pending()
        read = []
        get = memory.store.ledger.get

        def counted(ids):
            read.extend(ids)
            return get(ids)

        monkeypatch.setattr(memory.store.ledger, "get", counted)
        first, second = memory.recall(task, k=3, newest_only=True)
        assert first.id == daily[-1]
        assert second.trace.last_response == "None ."
        assert len(read) == 301


PAINT = {"red": "at noon .", "blue": "at night .", "grey": "at ten ."}


def tasks(logs):
    return [log.trace.task for log in logs]


def test_diversity_keeps_the_order_of_a_reranker(tmp_path):
    def blue_first(pairs):
        return [float("blue" in text) for _, text in pairs]

    with KVLogMemory(
        tmp_path / "m", embedder=hash_embedder, min_score=-1.0, reranker=blue_first
    ) as memory:
        memory.add_many(qa(f"the {color} door opens", when) for color, when in PAINT.items())
        memory.flush()
        for diversity in (0.0, 0.1):
            found = memory.recall("the red door opens", diversity=diversity)
            assert tasks(found)[:2] == ["the blue door opens", "the red door opens"]
        assert tasks(memory.recall("the red door opens", k=1, diversity=0.5)) == tasks(found)[:1]


KEEPERS = ["The keeper of Kestrel Point is Ada Holm .", "The keeper of Kestrel Point is Jo Bly ."]


@pytest.mark.parametrize(("old", "new"), [KEEPERS, KEEPERS[::-1]])
def test_diversity_keeps_the_newest_first(tmp_path, old, new):
    with KVLogMemory(tmp_path / "m") as memory:
        for said in (old, new, "The cook of Sandvik is Per Lund ."):
            memory.add(qa(said, "I have noted it ."))
        memory.embed_pending()
        asked = {"newest_only": True, "min_relevance": 0.0}
        for diversity in (0.0, 0.2):
            found = memory.recall("Who keeps Kestrel Point ?", diversity=diversity, **asked)
            assert tasks(found)[:2] == [new, old]
        found = memory.recall("Who keeps Kestrel Point ?", k=1, diversity=0.5, **asked)
        assert tasks(found) == [new]


def test_diversity_drops_no_log_that_is_found_by_its_code(tmp_path):
    def by_beginning(texts):
        """Does not see what stands at the end."""
        return hash_embedder([" ".join(text.split()[:3]) for text in texts])

    with KVLogMemory(tmp_path / "m", embedder=by_beginning, min_score=-1.0) as memory:
        memory.add_many(
            qa(f"{name} was asked why the door is shut", "It is late .")
            for name in ("Ada", "Ben", "Cleo", "Dora")
        )
        code = memory.add(qa("Nobody could know what is meant by QX-7741", "A fuse ."))
        memory.flush()
        for diversity in (0.0, 0.1):
            found = memory.recall("Ada was asked of QX-7741", k=2, diversity=diversity)
            assert code in [log.id for log in found]

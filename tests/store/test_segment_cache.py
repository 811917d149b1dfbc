"""The segment cache: its budget, one tensor for many threads, and nothing that is stale."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

from lag_integrations.kv.segment import Segment
from lag_integrations.store.segment_cache import SegmentCache
from tests.store.processes import numbered, open_memory


def segment(tokens: int) -> Segment:
    slots = (torch.zeros(1, 1, tokens, 10), torch.zeros(1, 1, tokens, 10))
    return Segment(torch.zeros(tokens, dtype=torch.int64), (slots,), "model")


def test_least_recently_used_go_first():
    one = segment(10)
    hot = SegmentCache(3 * one.nbytes)
    for name in "abc":
        hot.put(name, name, segment(10))
    assert hot.get("a") is not None
    hot.put("d", "d", segment(10))
    assert [name for name in "abcd" if hot.get(name)] == ["a", "c", "d"]
    assert hot.nbytes == 3 * one.nbytes
    hot.put("large", "large", segment(100))  # larger than all of it
    assert hot.get("large") is None
    assert len(hot) == 3
    hot.put("two", "two", segment(20))
    assert hot.nbytes == 3 * one.nbytes
    hot.put("two", "two", segment(10))  # again, smaller
    assert hot.nbytes == 2 * one.nbytes
    hot.drop_logs({"two"})
    assert (len(hot), hot.nbytes) == (1, one.nbytes)
    hot.clear()
    assert (len(hot), hot.nbytes) == (0, 0)
    assert SegmentCache(0).get("a") is None


def test_threads_share_what_is_read_once(tmp_path, tiny):
    with open_memory(tmp_path / "m") as memory:
        memory.attach(tiny)
        memory.add_many(numbered(number) for number in range(10))
        memory.flush()
        found = memory.recall("vault", k=10)
        first = memory.segments(found)
        copies = [[slot.clone() for slot in held.slots[0]] for held in first]
        reads = []
        # No file is read any more.
        memory.store.segment_files.get = lambda *asked: reads.append(asked)
        wrong = []

        def use() -> None:
            for _ in range(20):
                again = memory.segments(found)
                if any(mine is not theirs for mine, theirs in zip(again, first, strict=True)):
                    wrong.append(again)
                tiny.generate(numbered(1).messages[:1], again[:3], max_new_tokens=2)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (reads, wrong) == ([], [])
        for held, copy in zip(first, copies, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(held.slots[0], copy, strict=True))


def test_what_another_memory_deleted_is_let_go(tmp_path, tiny):
    with open_memory(tmp_path / "m") as one, open_memory(tmp_path / "m") as other:
        keys = one.add_many([numbered(1), numbered(2)])
        one.flush()
        one.segments(one.recall("vault"))
        assert len(one.store.segment_cache) == 2
        other.delete(keys[0])
        one.flush()
        assert len(one.store.segment_cache) == 1


def test_the_budget_is_the_memorys(tmp_path, tiny):
    with open_memory(tmp_path / "m", hot_bytes=0) as memory:
        memory.add(numbered(1))
        memory.flush()
        found = memory.recall("vault")
        assert memory.segments(found)[0] is not memory.segments(found)[0]
        assert len(memory.store.segment_cache) == 0


def test_segments_are_held_as_the_model_wants_them(tmp_path, tiny, monkeypatch):
    def elsewhere(segment: Segment) -> Segment:
        return replace(segment, info={"staged": "yes"})

    monkeypatch.setattr(type(tiny.encoder), "stage", lambda _, segment: elsewhere(segment))
    with open_memory(tmp_path / "m") as memory:
        memory.add(numbered(1))
        memory.flush()
        found = memory.recall("vault")
        for _ in range(2):  # as it was saved, and as it was loaded
            (held,) = memory.segments(found)
            assert held.info == {"staged": "yes"}
            assert memory.segments(found)[0] is held
            memory.store.segment_cache.clear()


def test_without_a_gpu_segments_stay_where_they_are(tiny):
    one = segment(3)
    assert tiny.encoder.stage(one) is one

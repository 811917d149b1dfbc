"""Metadata filters, and metadata that are hard to filter by."""

from __future__ import annotations

import tracemalloc

import pytest

from lag_integrations.errors import (
    StoreError,
)
from tests.conftest import qa

FOUND = [
    ({"color": "red"}, {0, 2, 4}),
    ({"color": {"$ne": "red"}}, {1, 3, 5}),
    ({"color": {"$in": ["blue", "green"]}}, {1, 3}),
    ({"color": {"$nin": ["blue", "green"]}}, {0, 2, 4, 5}),
    ({"size": {"$gte": 3}}, {3, 4}),
    ({"size": {"$gt": 1, "$lt": 4}}, {2, 3}),
    ({"size": {"$lte": 0}, "color": "red"}, {0}),
    ({"$or": [{"size": 1}, {"size": 4.0}]}, {1, 4}),
    ({"$and": [{"color": "red"}, {"$or": [{"size": 2}, {"size": 3}]}]}, {2}),
    ({"tags": "odd"}, {1, 3}),
    ({"done": True}, {0, 3}),
    ({"color": "red' OR '1'='1"}, set()),
    ({"it's": "here"}, {4}),
]


def test_metadata_filters(open_store):
    with open_store() as memory:
        for number, color in enumerate(["red", "blue", "red", "green", "red"]):
            metadata = {"color": color, "size": number, "done": number % 3 == 0}
            metadata["tags"] = ["odd" if number % 2 else "even", "all"]
            if number == 4:
                metadata["it's"] = "here"
            memory.add(qa(f"What about {number} ?", "Fine.", metadata=metadata))
        memory.add(qa("What about 5 ?", "Fine.", metadata={"nested": {"color": "red"}}))
        memory.flush()
        memory.add(qa("What about 99 ?", "Fine.", metadata={"color": "violet"}))
        for where, numbers in FOUND:
            found = memory.recall("What about it ?", k=9, where=where)
            assert {int(log.trace.task.split()[2]) for log in found} - {99} == numbers, where
            one = memory.recall("What about it ?", k=1, where=where)
            assert len(one) == min(1, len(numbers)), where


def nested(make, depth=5_000):
    value = make(1)
    for _ in range(depth):
        value = make(value)
    return value


NESTED = nested(lambda it: [it])
MALFORMED = [
    *({}, "color", {"$not": []}, {"a": {}}, {"a": {"$like": 1}}, {"a": {"$in": "x"}}),
    *({"a": None}, {"$or": {}}, {"$and": "x"}, {"a": {"$eq": [1]}}, {1: 2}),
    *({"a": NESTED}, {"a": {"$eq": NESTED}}, {"a": {"$in": NESTED}}, NESTED),
    *({"a": nested(lambda it: {"b": it})}, nested(lambda it: {"$or": [it]})),
]


def test_a_malformed_filter_is_refused(open_store):
    with open_store() as memory:
        for where in MALFORMED:
            with pytest.raises(StoreError, match="filter"):
                memory.recall("What about it ?", where=where)


def test_metadata_keys_that_a_database_cannot_tell_apart(open_store):
    with open_store() as memory:
        metadata = {"a\0": [1, 2], "a\ufffd": 3, "a\ufffe": "x", "b": [[], 4]}
        key = memory.add(qa("What is the code of the vault ?", "It is 7.", metadata=metadata))
        assert memory.get(key)[0].trace.metadata == metadata
        for where in ({"a\0": 3}, {"a\ufffd": 2}, {"a\ufffe": "x"}, {"b": 4}):
            assert list(memory.store.ledger.ids(where)) == [key]
        memory.feedback(key, outcome="success")
        assert memory.verify() == []


def test_odd_metadata_is_kept_and_harmless(open_store):
    metadata = {"nul\0": "a\0b", "huge": 10**400, "k" * 500: 1, "none": None, "deep": [[1]]}
    with open_store() as memory:
        memory.add(qa("What is odd ?", "This .", metadata=metadata))
        memory.flush()
        assert len(memory.recall("odd", where={"nul\0": "a\0b"})) == 1
        assert memory.recall("odd")[0].trace.metadata["huge"] == 10**400
        with pytest.raises(StoreError, match="too large"):
            memory.recall("odd", where={"huge": 10**400})


def test_filters_have_limits_and_say_so(open_store):
    with open_store() as memory:
        memory.add(qa("one", "answer", metadata={"k": 7, "name": "Ada"}))
        memory.embed_pending()
        many = {"k": {"$in": list(range(10_000))}}
        assert len(memory.recall("one", where=many)) == 1
        assert memory.recall("one", where={"k": {"$nin": list(range(10_000))}}) == []
        assert len(memory.recall("one", where={"name": {"$in": ["Ada", "Ben", 7]}})) == 1
        assert memory.recall("one", where={"name": "\ud800"}) == []
        deep: dict = {"k": 7}
        for _ in range(500):
            deep = {"$and": [deep]}
        for where, reason in (
            (deep, "more than 20 levels"),
            ({"$or": [{"k": number} for number in range(300)]}, "more than 200 conditions"),
            ({"k": {"$in": list(range(10_001))}}, "more than 10,000 values"),
        ):
            with pytest.raises(StoreError, match=reason):
                memory.recall("one", where=where)


# Several models, and memories that nobody closes


def test_many_large_filters_leave_no_memory_behind(open_store):
    with open_store() as memory:
        memory.add(qa("one", "answer", metadata={"k": 7}))
        memory.embed_pending()
        memory.recall("one", where={"k": 7})
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(150, 170):
                where = {"$or": [{"k": value} for value in range(number)]}
                assert len(memory.recall("one", where=where)) == 1
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 5e6

"""Filters and traces made at random: refused with an error of ours, or right."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lag_integrations import KVLogMemory, Trace
from lag_integrations.errors import StoreError, TraceError
from tests.store.model import hash_embedder

KEYS = st.sampled_from(["a", "b", "$and", "$or", "$in", "$nin", "$eq", "$ne", "$gt", "$lte", "$x"])
TEXTS = st.text(max_size=6) | st.sampled_from(["\x00", "\ud800", "%", "'", '"', "\\", "\ufffe"])
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**20, 10**4000)
    | st.floats()
    | TEXTS
    | st.binary(max_size=3)
)
FILTERS = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | TEXTS, inner, max_size=3),
    max_leaves=12,
)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=20_000)


@pytest.fixture(scope="module")
def memory():
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(folder, embedder=hash_embedder, min_score=-1.0) as memory,
    ):
        for number in range(5):
            memory.add(trace({"a": number, "b": [str(number), "x"]}))
        memory.flush()
        yield memory


def trace(metadata: dict[str, Any], text: str = "Yes.", args: Any = None) -> Trace:
    calls = [] if args is None else [{"name": "find", "args": args, "id": "1"}]
    return Trace.from_messages(
        [
            {"role": "user", "content": "Is it so?"},
            {"role": "assistant", "content": text, "tool_calls": calls},
        ],
        metadata=metadata,
        outcome="success",
    )


def recalls_or_refuses(memory: KVLogMemory, where: Any) -> None:
    try:
        found = memory.recall("Is it so?", where=where, k=10)
    except StoreError:
        return
    assert len(found) <= 5


def keeps_or_refuses(memory: KVLogMemory, metadata: Any, text: str, args: Any) -> None:
    """What is accepted can be read back, and found by its id."""
    try:
        made = trace(metadata, text, args)
        key = memory.add(made)
    except TraceError:
        return
    (log,) = memory.get(key)
    assert log.trace.content_hash == made.content_hash
    assert Trace.from_json(log.trace.to_json()).to_json() == log.trace.to_json()  # NaN is not NaN
    assert memory.delete(key).logs == 1


HUGE = 10**5_000
"""Python refuses to write it out, so Hypothesis cannot be given it."""


@pytest.mark.parametrize("where", [{"a": HUGE}, {"a": {"$in": [1, HUGE]}}, {"$or": HUGE}])
def test_a_number_of_too_many_digits_is_refused(memory, where):
    with pytest.raises(StoreError, match="cannot be used"):
        memory.recall("Is it so?", where=where)


@pytest.mark.parametrize("examples", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_any_filter(memory, examples):
    @examples
    @given(FILTERS)
    def fuzz(where: Any) -> None:
        recalls_or_refuses(memory, where)

    fuzz()


@pytest.mark.parametrize("examples", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)])
def test_any_trace(memory, examples):
    @examples
    @given(st.dictionaries(TEXTS, FILTERS, max_size=3), TEXTS, FILTERS)
    def fuzz(metadata: Any, text: str, args: Any) -> None:
        keeps_or_refuses(memory, metadata, text, args)

    fuzz()

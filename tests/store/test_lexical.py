"""Lexical search, on every backend: names and codes find their logs, whatever the embedding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import qa
from tests.store.conftest import logs_in_index
from tests.store.processes import numbered


def alike(texts):
    """An embedder to which all texts are nearly the same."""
    vectors = np.ones((len(texts), 8), dtype=np.float32)
    vectors[:, 0] += [len(text) % 7 * 1e-3 for text in texts]
    return vectors


def ticket(number):
    return qa(f"What happened in ticket OPS-{number} ?", "The disk was full .")


@pytest.fixture
def memory(open_store):
    with open_store(embedder=alike) as memory:
        yield memory


def test_a_code_finds_its_log(memory):
    keys = memory.add_many(ticket(2200 + number) for number in range(40))
    memory.flush()
    for query in ("ops 2213 again, who can help?", "OPS-2213", "再び2213です"):
        found = memory.recall(query, k=1)
        assert [log.id for log in found] == [keys[13]]
        assert found[0].relevance > memory.recall("Who is there?", k=1)[0].relevance


def test_words_are_as_rare_as_they_are_now(memory):
    """A search of the empty store says nothing of how rare words are later."""
    asked = "What happened in ticket OPS-2213 ?"
    assert memory.recall(asked) == []
    memory.add_many(ticket(2200 + number) for number in range(40))
    memory.flush()
    first, second = memory.explain(asked)[:2]
    assert first.log.trace.task == ticket(2213).task
    assert second.words < 1.0 < first.words  # all hold the other five words


def test_what_was_deleted_is_not_found(memory):
    keys = memory.add_many(ticket(number) for number in (1111, 2222, 3333))
    memory.flush()
    memory.delete(keys[1])
    lexical = memory.store.lexical
    assert lexical.candidates(lexical.rarities("2222"), 5) == []
    assert lexical.candidates(lexical.rarities("3333"), 5) == [keys[2]]
    memory.purge()
    assert lexical.candidates(lexical.rarities("3333"), 5) == []
    assert logs_in_index(memory) == set()


def test_words_of_another_namespace_do_not_count(open_store):
    with (
        open_store(embedder=alike, namespace="mine") as mine,
        open_store(embedder=alike, namespace="theirs") as theirs,
    ):
        theirs.add_many(ticket(2200 + number) for number in range(20))
        (key,) = mine.add_many([ticket(2213)])
        mine.flush()
        theirs.flush()
        lexical = mine.store.lexical
        rarities = lexical.rarities("ticket 2213")
        assert lexical.candidates(rarities, 9) == [key]
        # In mine, one log of one holds them; in theirs, all do and one of twenty does.
        assert len(set(rarities.values())) == 1


def test_a_changed_log_has_its_new_words(memory):
    lexical = memory.store.lexical
    key = memory.add(ticket(1234))
    memory.flush()
    lexical.add({key: "quite other words", "0" * 32: "of no log"})
    assert lexical.candidates(lexical.rarities("1234"), 5) == []
    assert lexical.candidates(lexical.rarities("other"), 5) == [key]
    assert lexical.candidates(lexical.rarities("log"), 5) == []


def test_filters_and_outcomes_hold_for_words_too(memory):
    wrong = memory.add(qa("Ticket OPS-7 ?", "No idea .", outcome="failure"))
    right = memory.add(qa("Ticket OPS-7 !", "It is solved .", metadata={"team": "x"}))
    memory.flush()
    assert [log.id for log in memory.recall("OPS-7")] == [right]
    assert memory.recall("OPS-7", where={"team": "y"}) == []
    assert [log.id for log in memory.recall("OPS-7", outcomes=["failure"])] == [wrong]


def test_odd_queries(memory):
    memory.add(numbered(1))
    memory.flush()
    for query in ("'); DROP TABLE logs; --", '" OR words NOT', "x" * 100_000, "?!"):
        assert len(memory.recall(query)) == 1, query[:20]
        assert memory.store.ledger.count() == 1

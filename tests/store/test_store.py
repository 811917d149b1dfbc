"""What a store does, the same on every backend: SQLite or PostgreSQL, Chroma in or as a server."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from datetime import timedelta

import numpy as np
import pytest
import torch

from lag_integrations import KVLogMemory
from lag_integrations.errors import (
    EmbedderMismatchError,
    EncodingError,
    LogNotFoundError,
    StoreError,
    TraceError,
)
from lag_integrations.kv.codecs import CODECS
from lag_integrations.store import ledger
from lag_integrations.store.budget import Budget
from lag_integrations.traces.search_keys import SearchKey
from lag_integrations.traces.sources import Source
from lag_integrations.traces.trace import Trace
from tests.conftest import qa
from tests.helpers import stored_segments
from tests.store.conftest import logs_in_index
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import numbered, open_memory


def ids(found):
    return [log.id for log in found]


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
        while memory.store.embeddings.count() == 10:
            time.sleep(0.01)  # the worker embeds it; so few are not merged yet
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


def test_outcomes(open_store):
    with open_store() as memory:
        for outcome in ("success", "failure", "incomplete", "unknown"):
            memory.add(qa(f"Was it a {outcome} ?", "Yes.", outcome=outcome))
        memory.flush()
        usual = {log.trace.outcome for log in memory.recall("Was it a failure ?")}
        assert usual == {"success", "unknown"}
        (failed,) = memory.recall("Was it a failure ?", outcomes=["failure"])
        memory.add(failed.trace.model_copy(update={"outcome": "success"}))
        memory.flush()
        assert len(memory.recall("Was it a failure ?", outcomes=["success"])) == 2
        for less in ("unknown", "incomplete"):
            memory.add(failed.trace.model_copy(update={"outcome": less}))  # the verdict stays
        assert memory.recall("Was it a failure ?", outcomes=["failure"]) == []
        assert len(memory.recall("Was it a failure ?", outcomes=["success"])) == 2
        (stopped,) = memory.recall("Was it a failure ?", outcomes=["incomplete"])
        memory.add(stopped.trace.model_copy(update={"outcome": "unknown"}))  # it came to its end
        assert memory.recall("Was it a failure ?", outcomes=["incomplete"]) == []


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
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
    ],
)
def test_metadata_filters(open_store, where, numbers):
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
        found = memory.recall("What about it ?", k=9, where=where)
        assert {int(log.trace.task.split()[2]) for log in found} - {99} == numbers
        assert len(memory.recall("What about it ?", k=1, where=where)) == min(1, len(numbers))


@pytest.mark.parametrize(
    "where",
    [
        *({}, "color", {"$not": []}, {"a": {}}, {"a": {"$like": 1}}, {"a": {"$in": "x"}}),
        *({"a": None}, {"$or": {}}, {"$and": "x"}, {"a": {"$eq": [1]}}, {1: 2}),
    ],
)
def test_a_malformed_filter_is_refused(open_store, where):
    with open_store() as memory, pytest.raises(StoreError, match="filter"):
        memory.recall("What about it ?", where=where)


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
        with pytest.raises(StoreError, match="from 0 to 1"):
            memory.recall("Where is the red door ?", diversity=1.5)


def test_feedback(open_store):
    with open_store() as memory:
        good, bad = memory.add(numbered(1)), memory.add(numbered(2))
        memory.flush()
        memory.feedback([good, bad], helped=True)
        memory.feedback(bad, helped=False)
        assert set(ids(memory.recall("vault"))) == {good, bad}
        memory.feedback(bad, helped=False)
        assert ids(memory.recall("vault")) == [good]
        memory.flush()
        info = {log.id: log for log in memory.store.ledger.info()}
        assert (info[good].times_helped, info[good].times_harmed) == (1, 0)
        assert (info[bad].times_helped, info[bad].times_harmed) == (1, 2)
        assert (info[good].times_recalled, info[bad].times_recalled) == (2, 1)
        with pytest.raises(LogNotFoundError, match="nothing"):
            memory.feedback(["nothing", good], helped=True)
        assert memory.store.ledger.info([good])[0].times_helped == 2


def shown(number, *documents):
    """A log of a run that was shown a piece of each document."""
    sources = [
        Source(f"{name}-{number}", (name, f"/{name}"), "hash").to_json() for name in documents
    ]
    return qa(f"question {number}", f"answer {number}", metadata={"sources": sources})


def test_logs_of_changed_sources_wait_for_a_confirmation(open_store):
    with open_store() as memory, open_store(namespace="other") as other:
        traces = [shown(0, "a", "b"), shown(1, "b"), shown(2, "c"), shown(3, "c"), qa("four", "4")]
        zero, _, two, three, four = memory.add_many(traces)
        elsewhere = other.add(traces[0])
        memory.flush()
        other.flush()
        assert memory.sources_changed("b") == 2
        assert memory.sources_changed(["/c", "a-0", "b"]) == 4
        assert memory.sources_changed([]) == memory.sources_changed("4") == 0
        assert ids(memory.recall("question", k=9)) == [four]
        assert ids(other.recall("question")) == [elsewhere]
        memory.feedback(traces[0].id, outcome="success")
        memory.feedback(traces[1].id, outcome="unknown")
        memory.judge(two, "success")
        memory.add(traces[3])  # a run said it again
        memory.flush()
        assert set(ids(memory.recall("question", k=9))) == {zero, three, four}
        memory.sources_changed("a")  # once more
        assert set(ids(memory.recall("question", k=9))) == {three, four}
        assert memory.verify() == []


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


def test_metadata_keys_that_a_database_cannot_tell_apart(open_store):
    with open_store() as memory:
        metadata = {"a\0": [1, 2], "a\ufffd": 3, "a\ufffe": "x", "b": [[], 4]}
        key = memory.add(qa("What is the code of the vault ?", "It is 7.", metadata=metadata))
        assert memory.get(key)[0].trace.metadata == metadata
        for where in ({"a\0": 3}, {"a\ufffd": 2}, {"a\ufffe": "x"}, {"b": 4}):
            assert list(memory.store.ledger.ids(where)) == [key]
        memory.feedback(key, outcome="success")
        assert memory.verify() == []


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
        memory.add_many(numbered(number) for number in range(20, 25))
        time.sleep(1.0)  # the worker is done: it would record the use, too
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
        assert segments == sum(len(memory.store.segment_files.get(name)) for name in files)
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


def test_odd_metadata_is_kept_and_harmless(open_store):
    metadata = {"nul\0": "a\0b", "huge": 10**400, "k" * 500: 1, "none": None, "deep": [[1]]}
    with open_store() as memory:
        memory.add(qa("What is odd ?", "This .", metadata=metadata))
        memory.flush()
        assert len(memory.recall("odd", where={"nul\0": "a\0b"})) == 1
        assert memory.recall("odd")[0].trace.metadata["huge"] == 10**400
        with pytest.raises(StoreError, match="too large"):
            memory.recall("odd", where={"huge": 10**400})


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


def test_two_memories_with_one_budget(open_store):
    with open_store(max_logs=100) as one, open_store(max_logs=100) as other:
        one.add_many(numbered(number) for number in range(150))
        other.add_many(numbered(number) for number in range(150, 300))
        threads = [threading.Thread(target=memory.flush) for memory in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 99 <= one.store.ledger.count() <= 100


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

"""Lessons in the store: they go with what they were made of, on every backend."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from lag_integrations import Refuse, Trace
from lag_integrations.errors import StoreError, TraceError
from lag_integrations.store.budget import Budget
from lag_integrations.store.schema import logs
from lag_integrations.traces.reserved_metadata import LESSON
from tests.conftest import qa
from tests.helpers import stored_segments
from tests.store.conftest import ids, logs_in_index, shown


def vault(number: int, **fields: object) -> Trace:
    return qa(f"Which code opens the vault with number {number} ?", f"It is 77{number} .", **fields)


def teacher(prompt: str) -> str:
    """A lesson that tells what it was made of."""
    codes = [word for word in prompt.split() if word.startswith("77")]
    return f"When: a vault. Do: give its code, such as {' or '.join(codes)}."


def lessons(memory):
    return memory.get([one.id for one in memory.store.lessons.all()])


def test_a_lesson_goes_with_the_first_of_its_sources(open_store, tiny):
    with open_store() as memory:
        memory.attach(tiny)
        one, two, three = memory.add_many([vault(number) for number in (1, 2, 3)])
        (lesson,) = memory.learn(teacher).lessons
        memory.flush()
        (found,) = memory.recall("vault", where=LESSON)
        assert found.id == lesson
        assert found.trace.metadata["lag_lesson_of"] == [one, two, three]
        assert len(memory.segments([found])[0]) > 3
        assert lesson in logs_in_index(memory)

        receipt = memory.delete(two)
        assert set(receipt.ids) == {two, lesson}
        assert memory.recall("vault", where=LESSON) == []
        said = [log.trace.last_response for log in memory.recall("vault", k=9)]
        assert said  # ids may hold any digits
        assert "772" not in " ".join(said)
        memory.flush()
        assert logs_in_index(memory) == {one, three}
        assert len(list(memory.store.segment_files.names(""))) == 2
        assert memory.verify() == []

        (again,) = memory.learn(teacher).lessons
        assert memory.get(again)[0].trace.metadata["lag_lesson_of"] == [one, three]
        assert set(memory.purge().ids) == {one, three, again}
        assert memory.verify() == []


def test_filters_by_what_a_lesson_s_sources_differ_in_leave_it_out(open_store):
    """It says what was in any of them."""
    with open_store() as memory:
        memory.add_many(
            [
                vault(1, metadata={"tenant": "b", "secret": True, "team": "x"}),
                vault(2, metadata={"tenant": "a", "team": "x"}),
            ]
        )
        (lesson,) = memory.learn(teacher).lessons
        memory.flush()
        for where, found in (
            ({"secret": {"$ne": True}}, False),
            ({"tenant": {"$ne": "b"}}, False),
            ({"tenant": {"$nin": ["b", "c"]}}, False),
            ({"tenant": "a"}, False),
            ({"$or": [{"tenant": "a"}, {"secret": {"$ne": True}}]}, False),
            ({"team": "x"}, True),
            ({"team": {"$ne": "y"}}, True),
            ({"team": {"$nin": ["y"]}}, True),
        ):
            assert (lesson in ids(memory.recall("vault", k=9, where=where))) is found, where
        assert len(memory.recall("vault", k=9, where={"secret": {"$ne": True}})) == 1


@pytest.mark.parametrize("outcomes", [("success",), ("success", "unknown")])
def test_lessons_are_recalled_whatever_outcomes_are(open_store, tiny, outcomes):
    """Nobody can say how a lesson ended."""
    with open_store(outcomes=outcomes) as memory:
        memory.attach(tiny)
        memory.add_many([vault(1, outcome="success"), vault(2, outcome="success")])
        (lesson,) = memory.learn(teacher).lessons
        memory.flush()
        found = memory.recall("vault", k=9)
        assert lesson in ids(found)
        assert None not in stored_segments(memory, found)
        assert lesson not in ids(memory.recall("vault", k=9, outcomes=["failure"]))
        memory.feedback(lesson, outcome="failure")
        assert lesson not in ids(memory.recall("vault", k=9))


def test_a_lesson_is_as_old_as_its_oldest_source(open_store):
    with open_store(ttl=1_000.0) as memory:
        memory._worker.stop()  # which deletes what is too old, a moment later
        first, second = memory.add_many([vault(1), vault(2)])
        (lesson,) = memory.learn(teacher).lessons
        memory.embed_pending()
        assert set(ids(memory.recall("vault", k=9))) == {first, second, lesson}
        with memory.store.database.write() as connection:
            older = logs.c.captured_at - 2_000.0
            connection.execute(update(logs).where(logs.c.id == first).values(captured_at=older))
        assert ids(memory.recall("vault", k=9)) == [second]


def test_deleting_a_lesson_leaves_what_it_was_made_of(open_store):
    with open_store() as memory:
        sources = memory.add_many([vault(1), vault(2)])
        (lesson,) = memory.learn(teacher).lessons
        assert memory.delete(lesson).ids == (lesson,)
        assert set(memory.store.ledger.ids()) == set(sources)
        assert memory.learn(teacher).lessons == (lesson,)


def test_eviction_takes_the_lesson_too(open_store):
    with open_store() as memory:
        memory.add_many([vault(1), vault(2)])
        (lesson,) = memory.learn(teacher).lessons
        memory.store.evictor.enforce(Budget(max_logs=2))
        assert lesson not in set(memory.store.ledger.ids())
        assert memory.store.ledger.count() == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda memory, key: memory.feedback(key, outcome="failure"),
        lambda memory, key: memory.feedback(key, outcome="incomplete"),
        lambda memory, key: memory.sources_changed("doc"),
    ],
    ids=["failed", "incomplete", "outdated"],
)
def test_a_lesson_goes_when_a_source_is_said_to_be_otherwise(open_store, change):
    with open_store() as memory:
        sources = shown(1, "doc").metadata
        one, two, three = memory.add_many(
            [vault(1, outcome="success", metadata=sources), vault(2), vault(3)]
        )
        (lesson,) = memory.learn(teacher).lessons
        memory.feedback(two, outcome="success")  # it is what it was taken for
        memory.add(vault(3))
        assert ids(lessons(memory)) == [lesson]
        change(memory, one)
        assert lessons(memory) == []
        memory.learn(teacher)
        (log,) = lessons(memory)
        failed = memory.get(one)[0].trace.outcome == "failure"
        assert log.trace.metadata["lag_lesson_of"] == ([one] if failed else []) + [two, three]


def test_a_source_that_is_deleted_while_the_model_writes_is_in_no_lesson(open_store):
    with open_store() as memory:
        one, _ = memory.add_many([vault(1), vault(2)])

        def slow(prompt: str) -> str:
            memory.delete(one)
            return teacher(prompt)

        made = memory.learn(slow)
        assert (made.lessons, made.refused) == ((), 0)
        assert memory.store.lessons.all() == []


def test_a_lesson_is_made_of_the_newest_and_of_failures_half_at_most(open_store):
    with open_store() as memory:
        failed = memory.add_many([vault(number, outcome="failure") for number in range(1, 7)])
        others = memory.add_many([vault(number) for number in range(7, 14)])
        memory.learn(teacher)
        (lesson,) = lessons(memory)
        assert lesson.trace.metadata["lag_lesson_of"] == failed[-4:] + others[-4:]
        memory.add_many([vault(number) for number in range(20, 23)])
        assert memory.learn(teacher).lessons == ()
        newest = memory.add(vault(23))  # half as many as it was made of
        memory.learn(teacher)
        (lesson,) = lessons(memory)
        assert lesson.trace.metadata["lag_lesson_of"][-1] == newest


def test_a_screen_looks_at_lessons_too(open_store):
    asked = []

    def screen(trace):
        return Refuse("no codes") if "such as" in trace.last_response else None

    def asks(prompt: str) -> str:
        asked.append(prompt)
        return teacher(prompt)

    with open_store(screen=screen) as memory:
        memory.add_many([vault(1), vault(2)])
        assert memory.learn(asks).refused == 1
        assert memory.learn(asks).refused == 0
        assert len(asked) == 1


def test_a_lesson_that_forgets_what_it_was_made_of_is_not_stored(open_store, caplog):
    with open_store() as memory:
        memory.add_many([vault(1), vault(2)])

    def forgets(trace: Trace) -> Trace:
        return trace.model_copy(update={"metadata": {}})

    with open_store(redact=forgets) as memory:
        assert memory.learn(teacher).refused == 1
        assert "lag_lesson_of" in caplog.text
        assert memory.store.ledger.count() == 2
        assert memory.learn(teacher).refused == 0  # in this process, it is not tried again


def test_two_who_learn_at_once_make_one_lesson(open_store):
    with open_store() as memory, open_store() as other:
        memory.add_many([vault(1), vault(2)])

        def slow(prompt: str) -> str:
            assert len(other.learn(teacher).lessons) == 1
            return teacher(prompt)

        assert memory.learn(slow).lessons == ()
        assert len(lessons(memory)) == 1


def test_nobody_else_says_that_a_log_is_a_lesson(open_store, tmp_path):
    with open_store() as memory:
        key = memory.add(vault(1))
        for metadata in ({"lag_lesson": True}, {"lag_lesson_of": [key]}):
            with pytest.raises(TraceError, match="only a memory itself sets"):
                memory.add(vault(2, metadata=metadata))


def test_an_archive_keeps_lessons_and_what_they_were_made_of(open_store, tmp_path):
    key = b"k" * 32
    with open_store() as memory, open_store(namespace="other") as other:
        memory.add_many([vault(1), vault(2)])
        memory.learn(teacher)
        (lesson,) = lessons(memory)
        memory.export_to(tmp_path / "a.lag", key=key)
        for _ in range(2):
            other.import_from(tmp_path / "a.lag", key=key)
            (there,) = lessons(other)
            sources = there.trace.metadata["lag_lesson_of"]
            assert there.id != lesson.id
            assert {log.trace.task for log in other.get(sources)} == {vault(1).task, vault(2).task}
        other.flush()
        assert other.learn(teacher).lessons == ()
        other.delete(sources[0])
        assert lessons(other) == []


def test_an_archive_of_anybody_brings_no_lessons(open_store, tmp_path):
    with open_store() as memory:
        memory.add_many([vault(1), vault(2)])
        memory.learn(teacher)
        memory.export_to(tmp_path / "a.lag", key=b"k" * 32)
        memory.purge()
        memory.import_from(tmp_path / "a.lag")
        found = memory.get(list(memory.store.ledger.ids()))
        assert {log.trace.task for log in found} == {vault(1).task, vault(2).task}


def test_a_lesson_of_logs_that_are_not_imported_is_left_out(open_store, tmp_path):
    key = b"k" * 32
    with open_store() as memory:
        memory.add_many([vault(1), vault(2)])
        memory.learn(teacher)
        memory.export_to(tmp_path / "a.lag", key=key)

    def without_two(trace: Trace) -> Trace | None:
        return None if trace.task == vault(2).task else trace

    with open_store(namespace="other", redact=without_two) as other:
        other.import_from(tmp_path / "a.lag", key=key)
        assert [log.trace.task for log in other.get(list(other.store.ledger.ids()))] == [
            vault(1).task
        ]


def test_what_is_learned_of_unjudged_web_runs_is_not_trusted_more(open_store):
    def web(number: int, user: str) -> Trace:
        return Trace.from_messages(
            [
                {"role": "user", "content": f"Which code opens the vault with number {number} ?"},
                {
                    "role": "assistant",
                    "tool_calls": [{"name": "web_search", "args": {"q": "vault"}, "id": "1"}],
                },
                {"role": "tool", "content": f"77{number}", "tool_call_id": "1"},
                {"role": "assistant", "content": f"It is 77{number} ."},
            ],
            metadata={"user_id": user},
        )

    with open_store() as memory:
        memory.add_own([web(1, "ann"), web(2, "ann")], judged=False)
        memory.add_own([web(3, "bob"), web(4, "bob")], judged=False)
        memory.add_many([vault(5), vault(6)])
        assert len(memory.learn(teacher).lessons) == 3
        memory.flush()
        by_user = {
            user: {
                log.trace.last_response
                for log in memory.recall("vault", k=9, where=LESSON, user=user)
            }
            for user in ("ann", "bob", None)
        }
        everybodys = "When: a vault. Do: give its code, such as 775 or 776."
        for user, codes in (("ann", "771 or 772"), ("bob", "773 or 774")):
            anns = next(text for text in by_user[user] - {everybodys})
            assert by_user[user] == {everybodys, anns}
            assert set(codes.split(" or ")) <= set(anns.replace(".", "").split())
        assert by_user[None] == {everybodys}
        sources = {info.source for info in memory.store.ledger.info(where=LESSON)}
        assert sources == {"document", "assistant"}


def test_a_store_that_can_only_be_read_learns_nothing(open_store, monkeypatch):
    with open_store() as memory:
        memory.add_many([vault(1), vault(2)])
        memory.flush()
        monkeypatch.setattr(memory.store.database, "read_only", True)
        with pytest.raises(StoreError, match="can only be read"):
            memory.learn(teacher)

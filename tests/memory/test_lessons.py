"""Lessons through the public API: the packaged embedder, real SQLite and Chroma."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from lag_integrations import KVLogMemory, Refuse, Trace
from lag_integrations.engine.token_selection import WholeTrace
from lag_integrations.errors import DistillationError, SettingsError, StoreError
from lag_integrations.memory.lessons.learner import LearnResult
from lag_integrations.traces.reserved_metadata import LESSON
from tests.conftest import qa
from tests.fake_engine import FakeEngine

NORWAY = qa("How do we ship a parcel to Norway?", "By the Bergen ferry.", outcome="success")
SWEDEN = qa("How do we ship a parcel to Sweden?", "By truck, over the bridge.", outcome="success")
FINLAND = qa("How do we ship a parcel to Finland?", "By plane, unbooked.", outcome="failure")
DENMARK = qa("How do we ship a parcel to Denmark?", "By truck.")
HAIKU = qa("Write a haiku about rain.", "Rain on the old roof.")
VERSE = qa("Write a haiku about snow.", "Snow on the old roof.")


class Teacher:
    """Answers with the countries or the weather that it was told of."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        words = ("Norway", "Sweden", "Finland", "Denmark", "rain", "snow")
        return f"When: {', '.join(word for word in words if word in prompt)}. Do: book first."


@pytest.fixture
def teacher() -> Teacher:
    return Teacher()


@pytest.fixture
def fake(engine) -> FakeEngine:
    return FakeEngine(engine.tokenizer)


def lessons(memory):
    return memory.get([one.id for one in memory.store.lessons.all()])


def said(memory):
    return sorted(log.trace.last_response for log in lessons(memory))


def test_runs_of_alike_tasks_become_one_lesson(memory, no_worker, teacher):
    norway, finland, *_ = memory.add_many([NORWAY, FINLAND, HAIKU, SWEDEN])
    made = memory.learn(teacher)
    assert (made.refused, made.left) == (0, 0)
    (prompt,) = teacher.prompts
    assert "haiku" not in prompt
    assert "Run 2 (failed)\nTask: How do we ship a parcel to Finland?\nDone: By plane" in prompt
    (lesson,) = memory.get(made.lessons)
    assert lesson.trace.last_response == "When: Norway, Sweden, Finland. Do: book first."
    assert lesson.trace.metadata["lag_lesson_of"][:2] == [norway, finland]
    assert lesson.trace.outcome == "unknown"

    memory.flush()
    (found,) = memory.recall("How do we ship a parcel to Iceland?", where=LESSON)
    assert found.id == lesson.id
    every = memory.recall("How do we ship a parcel to Iceland?", k=9)
    assert {log.trace.task for log in every} == {NORWAY.task, SWEDEN.task, lesson.trace.task}
    # It is found by the tasks that it was made of.
    (exact,) = memory.recall(FINLAND.task, where=LESSON)
    assert exact.score == pytest.approx(1.0, abs=1e-3)


def test_learning_again_makes_only_what_is_missing(memory, no_worker, teacher):
    memory.add_many([NORWAY, SWEDEN])
    (first,) = memory.learn(teacher).lessons
    assert memory.learn(teacher).lessons == ()
    memory.add_many([HAIKU, VERSE])
    memory.learn(teacher)
    assert len(teacher.prompts) == 2
    memory.add(DENMARK)  # half as many runs again
    (second,) = memory.learn(teacher).lessons
    assert memory.get(first) == []
    assert memory.get(second)[0].trace.last_response.startswith("When: Norway, Sweden, Denmark.")
    memory.add(FINLAND)  # one more of three is not
    assert memory.learn(teacher).lessons == ()
    assert len(lessons(memory)) == 2


def test_a_call_that_was_interrupted_goes_on(memory, no_worker, teacher):
    memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])

    def dies(prompt: str) -> str:
        if teacher.prompts:
            raise OSError("a secret")
        return teacher(prompt)

    with pytest.raises(DistillationError, match=r"\(OSError\) for 1 of 2 groups.*; 1 l") as caught:
        memory.learn(dies)
    assert "secret" not in str(caught.value)
    assert len(lessons(memory)) == 1
    assert memory.learn(teacher).left == 0
    assert len(teacher.prompts) == 2
    assert said(memory) == [
        "When: Norway, Sweden. Do: book first.",
        "When: rain, snow. Do: book first.",
    ]


def test_a_model_that_fails_for_one_group_is_asked_for_others(memory, no_worker, teacher):
    def fails(prompt: str) -> str:
        if "parcel" in prompt:
            raise OSError
        return teacher(prompt)

    memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])
    for groups, made in ((2, 1), (1, 0)):
        with pytest.raises(DistillationError, match=f"for 1 of {groups} groups.*; {made} lessons"):
            memory.learn(fails)
    assert said(memory) == ["When: rain, snow. Do: book first."]
    assert len(memory.learn(teacher).lessons) == 1


def test_a_group_that_cannot_be_recorded_holds_up_no_other(tmp_path, embedder, teacher, caplog):
    """Its tasks are refused themselves, so that not even that can be recorded."""

    def screen(trace: Trace) -> Refuse | None:
        is_lesson = "What is to be known" in trace.task
        return Refuse("no parcels") if is_lesson and "parcel" in trace.task else None

    with KVLogMemory(tmp_path / "m", embedder=embedder, screen=screen) as memory:
        memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])
        made = memory.learn(teacher)
        assert (len(made.lessons), made.refused) == (1, 1)
        assert "lets nothing be recorded that was learned of 2 runs" in caplog.text
        assert memory.learn(teacher) == LearnResult()
        assert len(teacher.prompts) == 2


@pytest.mark.parametrize("how", ["harmed", "failed", "gone", None])
def test_what_is_withdrawn_while_another_lesson_is_made_is_not_taught(
    memory, no_worker, teacher, how
):
    ids = memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])

    def withdraws(prompt: str) -> str:
        if not teacher.prompts:
            other = ids[0] if "haiku" in prompt else ids[2]
            if how == "harmed":
                memory.feedback([other], helped=False)
            elif how == "failed":
                memory.feedback(other, outcome="failure")
            elif how == "gone":
                memory.delete(other)
        return teacher(prompt)

    made = memory.learn(withdraws)
    # Of failures, lessons are made, too.
    assert len(made.lessons) == (2 if how in ("failed", None) else 1)
    assert len(lessons(memory)) == len(made.lessons)


def test_no_more_lessons_are_made_than_asked_for(memory, no_worker, teacher):
    memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])
    progress: list[tuple[int, int]] = []
    made = memory.learn(teacher, max_lessons=1, progress=lambda *done: progress.append(done))
    assert (len(made.lessons), made.left) == (1, 1)
    assert progress == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    "nonsense",
    [
        lambda prompt: " \n",
        lambda prompt: "<think>They shipped parcels.</think>",
        lambda prompt: "book first and then " * 20,
        lambda prompt: " ".join(str(number) for number in range(3_000)),
        lambda prompt: prompt[:400],
        lambda prompt: prompt[-200:],
    ],
    ids=[
        "empty",
        "only thoughts",
        "repeats",
        "too long",
        "copies the runs",
        "copies what is asked",
    ],
)
def test_nonsense_is_no_lesson_and_not_asked_for_again(memory, no_worker, teacher, nonsense):
    memory.add_many([NORWAY, SWEDEN])
    made = memory.learn(nonsense)
    assert (made.lessons, made.refused) == ((), 1)
    assert memory.learn(teacher).lessons == ()
    assert teacher.prompts == []
    memory.flush()
    assert memory.recall("How do we ship to Norway?", where=LESSON, outcomes=["failure"]) == []
    memory.add(DENMARK)
    assert len(memory.learn(teacher).lessons) == 1
    assert len(lessons(memory)) == 1


def test_users_are_kept_apart(memory, no_worker, teacher):
    for user, traces in {"ann": (NORWAY, SWEDEN), "bob": (FINLAND, DENMARK)}.items():
        memory.add_many(
            one.model_copy(update={"metadata": {"user_id": user, "team": "x"}}) for one in traces
        )
    memory.learn(teacher)
    memory.flush()
    assert len(teacher.prompts) == 2
    for user, countries in (("ann", "Norway, Sweden"), ("bob", "Finland, Denmark")):
        where = {"user_id": user, "team": "x", **LESSON}
        (found,) = memory.recall("How do we ship a parcel?", where=where)
        assert found.trace.last_response.startswith(f"When: {countries}.")


def test_users_come_together_where_all_is_anybodys(tmp_path, embedder, teacher):
    with KVLogMemory(tmp_path / "m", embedder=embedder, unjudged_documents="any") as memory:
        memory.add_many(
            one.model_copy(update={"metadata": {"user_id": user, "team": "x"}})
            for one, user in ((NORWAY, "ann"), (SWEDEN, "bob"))
        )
        (key,) = memory.learn(teacher).lessons
        metadata = memory.get(key)[0].trace.metadata
        assert "user_id" not in metadata
        assert metadata["team"] == "x"


def test_a_lesson_is_encoded_in_the_context_of_its_sources(memory, engine, teacher):
    memory.attach(engine)
    memory.add_many([NORWAY, SWEDEN])
    (lesson,) = memory.get(memory.learn(teacher).lessons)
    (segment,) = memory.segments([lesson])
    trace = lesson.trace
    assert [turn.text for turn in trace.earlier] == [
        *(NORWAY.messages[place].text for place in (0, 1)),
        *(SWEDEN.messages[place].text for place in (0, 1)),
    ]
    alone = engine.encode(trace.model_copy(update={"earlier": ()}))
    assert torch.equal(segment.token_ids, alone.token_ids)  # it takes no more room
    whole = engine.encode(
        trace.model_copy(update={"earlier": (), "messages": (*trace.earlier, *trace.messages)}),
        WholeTrace(),
    )
    tokens = len(segment)
    assert torch.equal(segment.token_ids, whole.token_ids[-tokens:])
    last = slice(-tokens, None)
    for mine, full, bare in zip(segment.slots[-1], whole.slots[-1], alone.slots[-1], strict=True):
        torch.testing.assert_close(mine, full[..., last, :], atol=2e-3, rtol=2e-3)
        assert (mine - bare).abs().max() > 0.1


def test_the_wrapped_model_distils_within_its_tokens(memory, fake):
    long = " ".join(f"step {number}" for number in range(2_000))
    memory.attach(fake)
    memory.add_many([qa(NORWAY.task, long), qa(SWEDEN.task, f"{long} then the bridge.")])
    fake.says("When: parcels. Do: book the ferry on Monday, and the truck on")
    (lesson,) = memory.get(memory.learn(max_tokens=300, max_new_tokens=9).lessons)
    (prompt,) = fake.prompts
    assert 200 < len(fake.tokens_of(prompt)) <= 300
    assert "then the bridge." in prompt
    assert lesson.trace.last_response == "When: parcels."  # what was cut off is left out
    memory.delete(lesson.id)
    fake.says("When: parcels to the north.")
    (lesson,) = memory.get(memory.learn(max_tokens=300).lessons)
    assert lesson.trace.last_response == "When: parcels to the north."


def test_what_is_no_model_is_refused(memory, tmp_path, embedder):
    with pytest.raises(StoreError, match="attach"):
        memory.learn()
    with pytest.raises(SettingsError, match="A str cannot distil lessons"):
        memory.learn("gpt")
    with pytest.raises(SettingsError, match="A int cannot"):
        KVLogMemory(tmp_path / "n", embedder=embedder, learn=3)


def test_items_of_a_store_teach_nothing(memory, no_worker, teacher):
    place = {"lag_place": {"namespace": ["a"], "key": "b"}}
    items = [one.model_copy(update={"metadata": place}) for one in (NORWAY, SWEDEN)]
    memory.add_own(items)
    assert memory.learn(teacher).lessons == ()


def wait_for(memory, number):
    until = time.monotonic() + 60
    while len(said(memory)) < number:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lessons_are_made_in_the_background(tmp_path, embedder, teacher):
    with KVLogMemory(tmp_path / "m", embedder=embedder, learn=teacher) as memory:
        memory.add_many([NORWAY, SWEDEN, HAIKU, VERSE])
        wait_for(memory, 2)
        assert said(memory) == [
            "When: Norway, Sweden. Do: book first.",
            "When: rain, snow. Do: book first.",
        ]
    assert len(teacher.prompts) == 2


def test_the_attached_model_learns_in_the_background(tmp_path, embedder, fake):
    fake.says("When: parcels to the north.")
    with KVLogMemory(tmp_path / "m", embedder=embedder, learn=True) as memory:
        memory.add_many([NORWAY, SWEDEN])
        memory.embed_pending()
        assert lessons(memory) == []
        memory.attach(fake)
        wait_for(memory, 1)


def test_a_model_that_fails_in_the_background_is_a_warning(tmp_path, embedder, caplog):
    asked = []

    def fails(prompt: str) -> str:
        asked.append(prompt)
        raise OSError("a secret")

    caplog.set_level(logging.WARNING)
    with KVLogMemory(tmp_path / "m", embedder=embedder, learn=fails) as memory:
        memory.add_many([NORWAY, SWEDEN])
        until = time.monotonic() + 60
        while "distils lessons failed (OSError)" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.05)
        memory.add(HAIKU)
        memory.flush()  # nothing else is held up
        assert memory.recall(HAIKU.task)
    assert len(asked) == 1
    assert "secret" not in caplog.text

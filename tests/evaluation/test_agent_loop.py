"""The paper's agent, round by round."""

from __future__ import annotations

import pytest

from lag_integrations.evaluation.agent_loop import Agent, Loop
from lag_integrations.evaluation.arms import ARMS, arm, whole_text
from lag_integrations.evaluation.documents import Documents
from lag_integrations.evaluation.questions import Document, Question
from lag_integrations.store.embedder import Embedder
from tests.conftest import qa

QUESTION = Question("q1", "Who rules the country whose capital is Lima?", ("Boluarte",))
TEXTS = {
    "lima": "Lima is the capital of Peru.",
    "president": "The president of Peru is Boluarte.",
    "cheese": "Cheese is made of milk.",
    "bees": "The Ostrava ferry carries bees.",
}
LOOP = Loop(rounds=3, documents=1, k=1, min_score=0.5, max_tokens=60, direct=False)
LIMA = qa("Which country has the capital Lima?", "Lima is the capital: <ans>Peru</ans>")
PERU = qa("Who is the president of Peru?", "The president is <ans>Boluarte</ans>")


@pytest.fixture
def documents(embedder):
    texts = [Document(key, key.capitalize(), text) for key, text in TEXTS.items()]
    return Documents(texts, Embedder(embedder))


@pytest.fixture
def agent(puppet, memory, no_worker, documents):
    memory.add_many([LIMA, PERU])
    memory.flush()

    def make(name, loop=LOOP):
        return Agent(puppet, memory, arm(name), documents, loop)

    return make


def test_it_searches_until_it_can_answer(agent, puppet):
    puppet.says(
        "It is Peru. <keywords>president of Peru</keywords>",
        "So it is <ans>Boluarte</ans> for sure.",
    )
    run = agent("none").run(QUESTION)
    assert run.answer == "Boluarte"
    assert [[document.id for document in found] for found in run.documents] == [
        ["lima"],
        ["president"],
    ]
    assert "president of Peru is Boluarte" not in puppet.prompts[0]
    assert all(TEXTS[key] in puppet.prompts[1] for key in ("lima", "president"))
    assert puppet.prompts[1].rindex(QUESTION.text) > puppet.prompts[1].rindex(TEXTS["president"])
    assert run.responses[-1] == "So it is <ans>Boluarte</ans>"  # nothing is said after an answer
    first, second = (
        puppet.tokenizer(text, add_special_tokens=False)["input_ids"] for text in puppet.prompts
    )
    pairs = zip(first, second, strict=False)
    alike = next(place for place, (one, other) in enumerate(pairs) if one != other)
    # The second round begins like the first, and the first as others may have begun.
    assert len(second) - alike < run.computed_tokens <= len(first) + len(second) - alike


def test_it_gives_up_after_its_rounds_and_never_reads_a_document_twice(agent, puppet):
    puppet.says("No idea.")
    run = agent("none").run(QUESTION)
    assert run.answer is None
    assert len(run.responses) == 3
    found = [document.id for documents in run.documents for document in documents]
    assert len(found) == len(set(found)) == 3


def test_no_arm_without_logs_recalls_any(agent, puppet):
    puppet.says("<ans>x</ans>")
    run = agent("none").run(QUESTION)
    assert run.logs == []
    assert puppet.injected == [0]


@pytest.mark.parametrize("name", [name for name in ARMS if name.startswith("kv")])
def test_segments_are_injected_best_last_and_more_each_round(agent, puppet, memory, name):
    puppet.says("<keywords>president of Peru</keywords>", "<ans>Boluarte</ans>")
    run = agent(name).run(QUESTION)
    assert puppet.injected == [1, 2]
    assert {log.trace.task for log in run.logs} == {LIMA.task, PERU.task}
    assert run.logs[0].score >= run.logs[1].score
    kept = [len(segment) for segment in memory.segments(run.logs, puppet)]
    assert run.injected_tokens >= sum(kept) + min(kept)
    assert run.stored_bytes > 0
    assert LIMA.last_response not in "".join(puppet.prompts)


@pytest.mark.parametrize("name", ["text_last", "text_all"])
def test_text_stands_before_the_question_and_after_the_documents(agent, puppet, name):
    puppet.says("<keywords>president of Peru</keywords>", "<ans>Boluarte</ans>")
    run = agent(name).run(QUESTION)
    assert puppet.injected == [0, 0]
    whole = name == "text_all"
    best, other = (whole_text(log.trace) if whole else log.trace.last_response for log in run.logs)
    read = puppet.prompts[1]
    places = [read.index(text) for text in (TEXTS["president"], other, best, QUESTION.text)]
    assert places == sorted(places)
    assert run.stored_bytes == len(best.encode()) + len(other.encode())


def test_a_cheatsheet_is_written_of_the_logs_and_read(agent, puppet):
    puppet.says("Lima belongs to Peru.", "<ans>Boluarte</ans>")
    run = agent("cheatsheet").run(QUESTION)
    assert LIMA.last_response in puppet.prompts[0]
    assert "Lima belongs to Peru." in puppet.prompts[1]
    assert LIMA.last_response not in puppet.prompts[1]
    assert run.answer == "Boluarte"
    assert run.generated_tokens > len(puppet.tokenizer("Lima belongs to Peru.")["input_ids"])


def test_below_the_floor_there_are_no_logs(agent, puppet):
    puppet.says("<ans>x</ans>")
    floor = Loop(rounds=1, documents=0, k=3, min_score=0.999, max_tokens=60, direct=False)
    run = agent("kv_last", floor).run(QUESTION)
    assert run.logs == []
    assert run.answer == "x"


def test_a_direct_round_begins_with_the_answer(agent, puppet):
    puppet.says("<ans>Boluarte</ans>")
    direct = Loop(rounds=1, documents=0, k=0, min_score=0.5, max_tokens=60, direct=True)
    run = agent("none", direct).run(QUESTION)
    assert puppet.prompts[0].endswith("<ans>")
    assert run.answer == "Boluarte"
    assert run.responses == ["<ans>Boluarte</ans>"]


def test_options_are_shown_and_thoughts_of_the_last_round_go_on(agent, puppet):
    choice = Question("q2", "Which is the capital of Peru?", ("B",), options=("Rome", "Lima"))
    puppet.says("Hm. <subquestion>What is a capital?</subquestion>", "It is <ans>(B) Lima</ans>")
    run = agent("none").run(choice)
    assert "(A) Rome\n(B) Lima" in puppet.prompts[0]
    assert "<subquestion>What is a capital?</subquestion>" in puppet.prompts[1]
    assert run.answer == "B"


def test_a_trace_says_what_was_found_and_said_but_not_what_was_recalled(agent, puppet):
    puppet.says("<keywords>president of Peru</keywords>", "It is <ans>Boluarte</ans>")
    run = agent("text_last").run(QUESTION)
    trace = run.trace()
    said = [(message.role, message.text) for message in trace.messages]
    assert [role for role, _ in said] == ["user", "assistant"] * 2
    assert said[0][1].endswith(f"Question: {QUESTION.text}")
    assert TEXTS["lima"] in said[0][1]
    assert TEXTS["president"] in said[2][1]
    assert TEXTS["lima"] not in said[2][1]
    assert trace.last_response == "It is <ans>Boluarte</ans>"
    assert trace.task == QUESTION.text
    assert not any("The president is" in text for _, text in said)
    assert set(trace.helped_by) == {log.id for log in run.logs}

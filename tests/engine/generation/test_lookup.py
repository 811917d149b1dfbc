"""Log lookup: the same answers in fewer passes, and little lost where there is nothing to find."""

from __future__ import annotations

import itertools

import pytest

from lag_integrations.engine.generation.lookup import LogLookup
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.engine.scheduler import Scheduler
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.store.model import tiny_engine

QUESTION = "How is the vault in Lima opened?"
LONG = (
    "First take the blue key from the box by the door. Then turn the wheel twice to the left and "
    "once to the right. Enter the digits 7, 7, 4 and 1, and pull the lever down."
)


@pytest.fixture(autouse=True)
def _usual_cost(monkeypatch):
    """How long passes take is the machine's; on a busy one, nothing may be proposed."""
    monkeypatch.setattr(Scheduler, "_cost", lambda self, answers: 0.8)


@pytest.fixture
def passes(monkeypatch):
    """How many tokens each pass read."""
    found = []
    read = ModelRunner.read
    monkeypatch.setattr(
        ModelRunner,
        "read",
        lambda self, rows: found.append([len(row.token_ids) for row in rows]) or read(self, rows),
    )
    return found


def ask(engine, question, segments=(), **settings):
    settings = {"max_new_tokens": 40, "do_sample": False, **settings}
    return engine.request([Message(role="user", content=question)], segments, **settings)


@pytest.fixture(scope="module")
def plain(engine):
    """The answer to the question of the log, with the log, without log lookup."""
    segment = engine.encode(qa(QUESTION, LONG))
    return engine.generate_batch([ask(engine, QUESTION, [segment], log_lookup=False)])[0]


def test_an_answer_that_repeats_a_log_takes_few_passes(engine, plain, passes):
    segment = engine.encode(qa(QUESTION, LONG))
    passes.clear()
    (fast,) = engine.generate_batch([ask(engine, QUESTION, [segment])])
    assert fast.text == plain.text
    assert "wheel twice to the left" in fast.text
    assert fast.accepted_tokens > 20
    assert len(passes) < 0.7 * len(plain.token_ids), "a pass for each token"
    assert plain.proposed_tokens == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 1.2, "seed": 4, "max_new_tokens": 40},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
        {"no_repeat_ngram_size": 4, "stop": ["wheel"], "top_logprobs": 2},
        {"grammar": 'start: /First[a-z ]+/ "."', "max_new_tokens": 12},
    ],
    ids=str,
)
def test_every_setting_gives_the_same_answer(engine, settings):
    segment = engine.encode(qa(QUESTION, LONG))
    settings = {"max_new_tokens": 20, **settings}
    fast, plain = (
        engine.generate_batch([ask(engine, QUESTION, [segment], log_lookup=lookup, **settings)])[0]
        for lookup in (True, False)
    )
    assert fast.token_ids == plain.token_ids
    assert (fast.text, fast.finish_reason) == (plain.text, plain.finish_reason)
    assert [one.token_id for one in fast.logprobs] == [one.token_id for one in plain.logprobs]
    for one, other in zip(fast.logprobs, plain.logprobs, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_what_comes_after_it_is_as_if_nothing_had_been_proposed(engine):
    segment = engine.encode(qa(QUESTION, LONG))
    asked = [Message(role="user", content=QUESTION)]
    said = engine.generate(asked, [segment], max_new_tokens=40, do_sample=False)
    assert said.proposed_tokens > said.accepted_tokens > 0
    more = [
        *asked,
        Message(role="assistant", content=said.text),
        Message(role="user", content="Is that all?"),
    ]
    kept = engine.generate(
        more, [segment], max_new_tokens=10, do_sample=False, placement="before_prompt"
    )
    engine._runner.prefixes.clear()
    anew = engine.generate(
        more, [segment], max_new_tokens=10, do_sample=False, placement="before_prompt"
    )
    assert kept.token_ids == anew.token_ids


def test_answers_that_share_passes_look_up_too(engine, plain, passes):
    segment = engine.encode(qa(QUESTION, LONG))
    other = "Say how the vault in Lima is opened."
    (alone,) = engine.generate_batch([ask(engine, other, [segment], log_lookup=False)])
    passes.clear()
    together = engine.generate_batch([ask(engine, asked, [segment]) for asked in (QUESTION, other)])
    assert [one.text for one in together] == [plain.text, alone.text]
    assert sum(one.accepted_tokens for one in together) > 20
    assert any(len(tokens) == 2 and max(tokens) > 2 for tokens in passes)


def test_models_that_take_turns_look_up_too(monkeypatch, passes):
    engine = tiny_engine()
    monkeypatch.setattr(ModelRunner, "can_batch", False)
    questions, settings = ("Hi", "Hello there"), {"max_new_tokens": 60}
    expected = [
        engine.generate_batch([ask(engine, question, log_lookup=False, **settings)])[0].token_ids
        for question in questions
    ]
    found = engine.generate_batch([ask(engine, question, **settings) for question in questions])
    assert [one.token_ids for one in found] == expected


def told(lookup, tokens, cost=0.8):
    """Let the lookup see tokens come, and count the passes that they take."""
    passes, place = 0.0, 0
    while place < len(tokens):
        proposed = lookup.propose(len(tokens) - place - 1, cost)
        right = sum(
            1
            for _ in itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(proposed, tokens[place:], strict=False)
            )
        )
        if proposed:
            lookup.judge(len(proposed), right, cost)
        for token in tokens[place : place + right + 1]:
            lookup.add(token)
        place += right + 1
        passes += 1 + (cost if proposed else 0)
    return passes


def test_what_stands_in_the_prompt_is_found():
    lookup = LogLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    assert lookup.propose(4, 0.8) == [4, 5, 6, 7]
    assert lookup.propose(0, 0.8) == []
    assert LogLookup([1, 2, 3, 4, 5]).propose(4, 0.8) == []
    assert LogLookup([]).propose(4, 0.8) == []


def test_the_longest_likeness_wins():
    lookup = LogLookup([9, 1, 2, 3, 50, 8, 1, 2, 3, 60, 9, 1, 2, 3])
    assert lookup.propose(1, 0.8) == [50]


def test_an_answer_that_misleads_costs_little():
    log = list(range(1000))
    # Each three tokens are the log's, and never what follows them.
    wrong = [
        token for start in range(0, 900, 10) for token in (*log[start : start + 3], -start - 1)
    ]
    assert told(LogLookup(log), wrong) <= 1.03 * len(wrong) + 2


def test_an_answer_that_repeats_is_several_times_as_fast():
    log = list(range(1000))
    assert told(LogLookup([*log, 5, 6, 7]), log[8:200]) < len(log[8:200]) / 4

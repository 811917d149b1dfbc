"""How tokens are picked, through the engine."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from lag_integrations.errors import SettingsError
from lag_integrations.traces.message import Message
from tests.store.model import tiny_engine


@pytest.fixture(scope="module")
def tiny():
    return tiny_engine()


def generate(engine, **settings):
    settings = {"max_new_tokens": 40, **settings}
    return engine.generate([Message(role="user", content="abc")], **settings)


def test_a_seed_repeats_and_leaves_the_global_state_alone(tiny):
    before = torch.get_rng_state()
    first = generate(tiny, temperature=1.0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert generate(tiny, temperature=1.0, seed=3).token_ids == first.token_ids
    assert generate(tiny, temperature=1.0, seed=4).token_ids != first.token_ids
    torch.manual_seed(1)
    one = generate(tiny, temperature=1.0)
    torch.manual_seed(1)
    assert generate(tiny, temperature=1.0).token_ids == one.token_ids


def test_top_k_and_top_p_and_min_p_narrow_the_choice(tiny):
    greedy = generate(tiny, do_sample=False).token_ids
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert generate(tiny, temperature=1.0, seed=0, **narrow).token_ids == greedy
    assert generate(tiny, temperature=0).token_ids == greedy
    assert generate(tiny, temperature=1.0, seed=0).token_ids != greedy


def test_penalties_and_biases(tiny):
    plain = generate(tiny, do_sample=False).token_ids
    most = Counter(plain).most_common(1)[0]
    assert most[1] > 1
    for penalty in (
        {"presence_penalty": 50.0},
        {"frequency_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
    ):
        assert max(Counter(generate(tiny, do_sample=False, **penalty).token_ids).values()) == 1
    assert generate(tiny, do_sample=False, repetition_penalty=5.0).token_ids != plain
    biased = generate(tiny, do_sample=False, logit_bias={7: 1000.0})
    assert set(biased.token_ids) == {7}


def test_logprobs_are_the_models(tiny):
    answer = generate(tiny, do_sample=False, top_logprobs=2, max_new_tokens=5, logit_bias={7: 99.0})
    assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
    for entry in answer.logprobs:
        (best, first), (_, second) = entry.top
        assert best != 7  # the model's own choice, whatever the bias made of it
        assert 0 > first > second
        assert entry.logprob < first
    every = generate(tiny, do_sample=False, top_logprobs=300, max_new_tokens=1).logprobs[0].top
    assert sum(math.exp(logprob) for _, logprob in every) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"misspelt": 1}, "misspelt"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"top_k": 1.5}, "whole number"),
        ({"logit_bias": {3: float("inf")}}, "finite"),
        ({"logit_bias": {"x": 1.0}}, "by token id"),
        ({"logit_bias": {-1: 1.0}}, "by token id"),
        ({"seed": 2**70}, "seed"),
        ({"top_logprobs": -1}, "top_logprobs is -1"),
        ({"temperature": 0, "do_sample": True}, "contradicts"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(tiny, settings, said):
    with pytest.raises(SettingsError, match=said):
        generate(tiny, **settings)


def test_whole_numbers_may_be_written_as_others(tiny):
    settings = {"top_k": 5, "seed": 1, "no_repeat_ngram_size": 2}
    expected = generate(tiny, temperature=1.0, logit_bias={7: 2.0}, **settings)
    written = {name: float(value) for name, value in settings.items()}
    found = generate(tiny, temperature=1.0, logit_bias={"7": 2.0}, **written)
    assert found.token_ids == expected.token_ids

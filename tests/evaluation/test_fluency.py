"""How answers read."""

from __future__ import annotations

import pytest
import torch

from lag_integrations.evaluation.fluency import log_likelihood, repetition
from lag_integrations.trace import Message


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("to to", 0.0),
        ("past the past", 0.0),
        ("the past the past the past", 0.5),
        ("The code is 7. the code is 8.", 1 / 6),
        ("to to to to", 0.5),
        ("", 0.0),
    ],
)
def test_what_is_said_again_is_repeated(text, share):
    assert repetition(text) == pytest.approx(share)


def test_the_likelihood_is_that_with_which_the_tokens_come(puppet):
    chat = [Message(role="user", content="Where is the vault?")]
    said = puppet.generate(chat, max_new_tokens=6, do_sample=False, top_logprobs=0)
    request = puppet.request(chat)
    expected = torch.tensor([token.logprob for token in said.logprobs]).mean()
    assert log_likelihood(puppet, request, said.token_ids) == pytest.approx(
        float(expected), abs=1e-3
    )
    other = [(token + 1) % 100 for token in said.token_ids]
    assert log_likelihood(puppet, request, other) < expected

"""Rows that are answered together get what they would get alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lag_integrations.engine.generation.batch import can_decode_together, decode_together, step
from lag_integrations.engine.generation.sampling import Sampling
from lag_integrations.engine.generation.sequence import Request, SequenceState
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.encode import prefill
from lag_integrations.traces.message import Message
from tests.conftest import qa
from tests.kv.families import FAMILIES, VOCABULARY, Family, load, tokens
from tests.store.model import tiny_engine

WORDS = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
LIMITS = (3, 9, 6, 9)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_and_caches(model: PreTrainedModel):
    """Prompts of different lengths, read; their first tokens taken."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=WORDS)
    rows, caches = [], []
    for length, limit in zip((4, 31, 12, 31), LIMITS, strict=True):
        request = Request(tokens(length, seed=length), 0, (), limit, (), Sampling())
        row, cache = SequenceState(request, tokenizer, frozenset()), new_cache()
        row.advance(prefill(model, torch.tensor(request.prompt_ids), cache))
        rows.append(row)
        caches.append(cache)
    return rows, caches


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_together_as_alone(family: Family) -> None:
    model = load(family)
    with torch.no_grad():
        assert can_decode_together(model)
        together, caches = rows_and_caches(model)
        decode_together(partial(step, model), together, caches, lambda row: True)
        alone, caches = rows_and_caches(model)
        for row, cache in zip(alone, caches, strict=True):
            while not row.done:
                row.advance(prefill(model, torch.tensor(row.pending_tokens), cache))
    assert [row.generation.token_ids for row in together] == [
        row.generation.token_ids for row in alone
    ]
    assert [len(row.generation.token_ids) for row in together] == list(LIMITS)


def ask(engine, question, segments=(), **settings):
    settings = {"max_new_tokens": 24, "do_sample": False, **settings}
    return engine.request([Message(role="user", content=question)], segments, **settings)


def questions(engine):
    """Each with other segments, other lengths, another end."""
    vault = engine.encode(qa("What is the code of the vault in Lima?", "The code is 7741."))
    pet = engine.encode(qa("What is the name of Ada's cat?", "Ada's cat is named Tolmin."))
    return [
        lambda: ask(engine, "Which code opens the vault in Lima?", [vault]),
        lambda: ask(engine, "How is Ada's cat named?", [vault, pet], max_new_tokens=9),
        lambda: ask(engine, "Say hello.", stop=["!"]),
        lambda: ask(engine, "Tell a story.", do_sample=True, temperature=1.5, seed=5),
    ]


def test_different_segments_a_row(engine):
    asked = questions(engine)
    alone = [engine.generate_batch([request()])[0] for request in asked]
    together = engine.generate_batch([request() for request in asked])
    assert engine.can_batch
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.injected_tokens == other.injected_tokens
        assert one.prompt_tokens == other.prompt_tokens
    assert "7741" in together[0].text
    assert "Tolmin" in together[1].text


def test_where_rows_cannot_be_padded_they_are_answered_one_by_one(monkeypatch, caplog):
    engine = tiny_engine()
    forward = engine.model.forward

    def without_mask(*args, **kwargs):  # an architecture that knows no padding
        kwargs.pop("attention_mask", None)
        kwargs.pop("position_ids", None)
        return forward(*args, **kwargs)

    asked = [ask(engine, "Hi"), ask(engine, "Something that is quite a bit longer")]
    expected = [engine.generate_batch([request])[0].token_ids for request in asked]
    monkeypatch.setattr(type(engine.model), "forward", lambda self, *a, **k: without_mask(*a, **k))
    assert not engine.can_batch
    found = engine.generate_batch(asked)
    assert [generation.token_ids for generation in found] == expected
    assert "cannot read padded rows" in caplog.text

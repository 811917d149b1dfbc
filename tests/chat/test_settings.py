"""Settings that would have no effect are refused, whichever the framework."""

from __future__ import annotations

import pytest

from lag_integrations import Message
from lag_integrations.errors import SettingsError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM
from tests.conftest import random_model


@pytest.mark.parametrize("face", [LAGChatModel, LAGLLM])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "cpu"),
        ("dtype", "bfloat16"),
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"enable_thinking": False}),
        ("model_kwargs", {"prefix_cache_bytes": 0}),
        ("quiet", True),
    ],
)
def test_an_engine_is_given_as_it_is(engine, face, name, value):
    with pytest.raises(ValueError, match=f"{name}= has no effect on an Engine"):
        face(engine, **{name: value})


@pytest.mark.parametrize("face", [LAGChatModel, LAGLLM])
def test_a_loaded_model_is_not_loaded_again(engine, face):
    model = random_model(engine.tokenizer).eval()
    loaded = {"model": model, "tokenizer": engine.tokenizer}
    for settings in (
        {"dtype": "bfloat16"},
        {"quiet": True},
        {"model_kwargs": {"revision": "main"}},
    ):
        with pytest.raises(ValueError, match="has no effect on a loaded model"):
            face(**loaded, **settings)
    with pytest.raises(ValueError, match="tokenizer="):
        face(model=model)
    found = face(**loaded, model_kwargs={"prefix_cache_bytes": 0}).engine
    found.generate([Message(role="user", content="Hello there!")], max_new_tokens=1)
    assert len(found._runner.prefixes) == 0


@pytest.mark.parametrize("face", [LAGChatModel, LAGLLM])
def test_a_tokenizer_is_for_a_loaded_model_alone(engine, face):
    for model in (engine, "some/model"):
        with pytest.raises(ValueError, match="tokenizer="):
            face(model, tokenizer=engine.tokenizer)


@pytest.mark.parametrize("face", [LAGChatModel, LAGLLM])
@pytest.mark.parametrize(
    ("name", "value"),
    [("max_tokens", 0), ("attention_temperature", 0), ("top_logprobs", -1), ("timeout", -1)],
)
def test_what_every_call_would_refuse_is_refused_at_once(engine, face, name, value):
    with pytest.raises(ValueError, match=name):
        face(engine, **{name: value})


def test_a_setting_that_is_said_twice_is_refused(engine):
    model = LAGChatModel(engine, temperature=0)
    with pytest.raises(SettingsError, match="max_completion_tokens=3"):
        model.invoke("Hello!", max_tokens=2, max_completion_tokens=3)
    answer = model.invoke("Hello!", max_completion_tokens=3)
    assert answer.usage_metadata["output_tokens"] <= 3

"""A setting that is misspelt or of a wrong type is refused at construction, by its name."""

from __future__ import annotations

import pytest

from lag_integrations.chat.settings import ModelSettings
from lag_integrations.errors import SettingsError, TraceError
from lag_integrations.llama_index import (
    LAGLLM,
    KVLogMemoryBlock,
    LAGMemory,
    LAGQueryEngine,
    LogRetriever,
)
from lag_integrations.llama_index.settings import (
    LAGLLMSettings,
    RecallSettings,
    RecallSettingsDict,
)
from tests.llama_index.fake_llm import FakeLLM, index


def engine(memory, **settings):
    return LAGQueryEngine(index().as_query_engine(llm=FakeLLM()), memory, **settings)


def llm(memory, **settings):
    return LAGLLM("some/model", memory=memory, **settings)


MAKERS = [llm, engine, LAGMemory, LAGMemory.from_defaults, KVLogMemoryBlock, LogRetriever]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("name", "value"), [("min_scor", 0.5), ("min_score", "high"), ("k", 1.5), ("k", "two")]
)
def test_it_is_refused(memory, make, name, value):
    with pytest.raises(ValueError, match=name):
        make(memory, **{name: value})
    make(memory, k=1, min_score=0.5, where={"team": "logistics"})


@pytest.mark.parametrize("make", [engine, LAGMemory, KVLogMemoryBlock])
def test_so_are_flags_and_metadata(memory, make):
    for name in ("as_text", "capture"):
        with pytest.raises(ValueError, match=name):
            make(memory, **{name: "perhaps"})
    with pytest.raises(TraceError, match="thread_id"):
        make(memory, metadata={"thread_id": "t"})


def test_so_are_the_llms_own(memory):
    for name, value in (("kv_reserve", -1), ("max_tokens", "many"), ("system_promt", "Hi.")):
        with pytest.raises(ValueError, match=name):
            llm(memory, **{name: value})


def test_a_retriever_needs_a_memory():
    with pytest.raises(SettingsError, match=r"LogRetriever\(KVLogMemory"):
        LogRetriever("./logs")


def test_type_checkers_know_all_settings():
    assert set(LAGLLMSettings.__annotations__) == set(LAGLLM.model_fields) - {"model"}
    assert set(LAGLLMSettings.__annotations__) > set(ModelSettings.model_fields) - {"model"}
    assert set(RecallSettingsDict.__annotations__) == set(RecallSettings.model_fields)


def test_fields_are_described():
    assert "free for recalled segments" in LAGLLM.model_fields["kv_reserve"].description
    for name, field in LAGMemory.model_fields.items():
        assert field.description, name
    for name in RecallSettings.model_fields:
        assert KVLogMemoryBlock.model_fields[name].description, name

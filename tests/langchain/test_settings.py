"""Settings that are misspelt or of a wrong type: refused at construction, and by type checkers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.retrievers import BaseRetriever
from mypy import api

import lag_integrations
from lag_integrations import kv_log_memory
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.chat.settings_dict import ModelSettingsDict
from lag_integrations.errors import StoreError
from lag_integrations.langchain import (
    CaptureHandler,
    KVLogMiddleware,
    LAGChatModel,
    LogRetriever,
    recall_tool,
)
from lag_integrations.langchain.settings import LAGChatModelSettings

FORMS = ["as_retriever", "as_tool", "middleware"]


@pytest.mark.parametrize("form", ["model", *FORMS])
def test_settings_are_checked_at_construction(memory, no_worker, form):
    make = getattr(memory, form, lambda **settings: LAGChatModel("none", **settings))
    with pytest.raises(ValueError, match="memroy"):
        make(memroy=memory)
    with pytest.raises(ValueError, match=r"(?s)\nk\n.*valid integer"):
        make(k="three")
    with pytest.raises(ValueError, match=r"(?s)k is -1|\nk\n.*greater than or equal to 0"):
        make(k=-1)
    with pytest.raises(ValueError, match=r"(?s)\nmin_score\n.*valid number"):
        make(min_score="high")
    with pytest.raises(ValueError, match=r"(?s)min_score is 7|\nmin_score\n.*less than or equal"):
        make(min_score=7)
    with pytest.raises(StoreError, match="filter"):
        make(where={"$nor": []})


@pytest.mark.parametrize("make", [CaptureHandler, KVLogMiddleware, recall_tool])
def test_what_is_no_memory_is_refused(make):
    with pytest.raises(ValueError, match="instance of LogMemory"):
        make("./memory")


def test_a_judge_that_cannot_be_called_is_refused(memory, no_worker):
    with pytest.raises(ValueError, match="callable"):
        memory.callback_handler(judge="strict")


@pytest.mark.parametrize("model", [LAGChatModel, LogRetriever])
def test_every_field_has_a_description(model):
    inherited = {*BaseChatModel.model_fields, *BaseRetriever.model_fields}
    fields = {name: field for name, field in model.model_fields.items() if name not in inherited}
    assert [name for name, field in fields.items() if not field.description] == []


def types_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def test_keyword_arguments_are_those_of_what_they_construct():
    fields = types_of(ModelSettings)
    assert types_of(ModelSettingsDict) == {
        name: fields[name] for name in ModelSettings.model_fields if name != "model"
    }
    keywords = types_of(LAGChatModelSettings)
    assert set(keywords) == set(LAGChatModel.model_fields) - {"model", "shared"}
    assert {name: keywords[name] for name in LAGChatModel.__annotations__ if name in keywords} == {
        name: types_of(LAGChatModel)[name]
        for name in LAGChatModel.__annotations__
        if name in keywords
    }
    for function, settings in (
        (KVLogMiddleware.__init__, kv_log_memory.MiddlewareSettings),
        (recall_tool, kv_log_memory.ToolSettings),
    ):
        parameters = types_of(function)
        parameters = {n: t for n, t in parameters.items() if n not in ("memory", "return")}
        assert parameters == types_of(settings)
    retriever = set(types_of(kv_log_memory.LangChainRetrieverSettings))
    assert retriever == set(LogRetriever.model_fields) - {"memory"}


RIGHT = """
from lag_integrations import Engine, KVLogMemory
from lag_integrations.langchain import (
    CaptureHandler, KVLogMiddleware, LAGChatModel, LogRetriever, recall_tool
)

def use(memory: KVLogMemory, engine: Engine) -> None:
    k: int | None = LAGChatModel("x", memory=memory, k=3, temperature=0, tags=["a"]).k
    LAGChatModel(engine, max_batch_size=4)
    LogRetriever(memory=memory, k=k, where={"team": "a"})
    KVLogMiddleware(memory, recall="step", where=lambda config: {"team": "a"})
    recall_tool(memory, k=1)
    CaptureHandler(memory, judge=lambda trace: True, metadata={"team": "a"})
    memory.as_retriever(k=3, newest_only=False)
    memory.as_tool(name="recall")
    memory.middleware(as_text=True)
"""
WRONG = [
    'LAGChatModel("x", memroy=memory)',
    'LAGChatModel("x", k="three")',
    'LAGChatModel("x", memory="./memory")',
    "LogRetriever(memory=memory, kk=1)",
    'LogRetriever(memory=memory, k="three")',
    'KVLogMiddleware(memory, k="three")',
    'KVLogMiddleware(memory, recall="always")',
    'recall_tool(memory, k="three")',
    'CaptureHandler("./memory")',
    'CaptureHandler(memory, judge="strict")',
    'memory.callback_handler(judge="strict")',
    'memory.as_retriever(k="three")',
    "memory.as_tool(kk=1)",
    'memory.middleware(recall="always")',
    'memory.as_llama_index_retriever(k="three")',
]


def test_mypy_sees_the_settings(tmp_path, monkeypatch):
    root = Path(lag_integrations.__file__).parents[1]
    monkeypatch.setenv("MYPYPATH", str(root))
    file = tmp_path / "use.py"
    file.write_text(RIGHT + "".join(f"    {line}\n" for line in WRONG))
    report, errors, _ = api.run(
        ["--config-file", str(root / "pyproject.toml"), "--no-error-summary", str(file)]
    )
    assert errors == ""
    first = RIGHT.count("\n") + 1
    found = {int(line.split(":")[1]) for line in report.splitlines() if ": error:" in line}
    assert found == set(range(first, first + len(WRONG))), report

"""The memory as a tool."""

from __future__ import annotations

import logging

import pytest
from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from lag_integrations import KVLogMemory
from lag_integrations.errors import EmbedderMismatchError, StoreError
from tests.conftest import qa
from tests.helpers import added
from tests.langchain.fake_chat_model import FakeChatModel, call

VAULT = qa("What is the code of the vault in Lima?", "It is 7741.", outcome="success")
QUITO = qa("What is the code of the vault in Quito?", "It is 5123.", metadata={"team": "safes"})
QUERY = "Which code opens the vault in Lima?"


class _Standard:
    @pytest.fixture(autouse=True)
    def _tool(self, memory):
        added(memory, VAULT)
        self.recall_tool = memory.as_tool()

    @property
    def tool_constructor(self):
        return self.recall_tool

    @property
    def tool_invoke_params_example(self):
        return {"query": QUERY}


class TestStandardUnit(_Standard, ToolsUnitTests):
    pass


class TestStandard(_Standard, ToolsIntegrationTests):
    pass


def asked(tool, query=QUERY):
    return tool.invoke(
        {"type": "tool_call", "id": "1", "name": tool.name, "args": {"query": query}}
    )


def test_it_tells_what_similar_runs_did_best_first(memory):
    vault, quito = added(memory, VAULT, QUITO)
    result = asked(memory.as_tool())
    assert result.artifact == {"lag": {"log_ids": [vault, quito]}}
    assert result.text.index("It is 7741.") < result.text.index("It is 5123.")
    assert VAULT.task in result.text


def test_it_says_so_when_there_is_nothing_similar(memory):
    added(memory, VAULT)
    result = asked(memory.as_tool(), "Who painted the ceiling of the chapel?")
    assert "othing similar" in result.text
    assert result.artifact == {"lag": {"log_ids": []}}


def test_name_description_and_settings(memory):
    _, quito = added(memory, VAULT, QUITO)
    tool = memory.as_tool(name="remember", description="Remember it.", where={"team": "safes"})
    assert (tool.name, tool.description) == ("remember", "Remember it.")
    assert asked(tool).artifact == {"lag": {"log_ids": [quito]}}
    assert len(asked(memory.as_tool(k=1)).artifact["lag"]["log_ids"]) == 1
    with pytest.raises(StoreError, match="filter"):
        memory.as_tool(where={"team": {"$like": "s"}})


def test_what_does_not_fit_is_left_out_worst_first(memory):
    long = qa(QUITO.task, f"It is 5123. {'Turn it left. ' * 20}")
    colour = qa("What colour is the vault?", "Grey.")
    grey, quito, vault = added(memory, colour, long, VAULT)
    assert asked(memory.as_tool(min_score=-1)).artifact["lag"]["log_ids"] == [vault, quito, grey]
    result = asked(
        memory.as_tool(min_score=-1, max_chars=150)
    )  # the last one would fit, but is worse
    assert result.artifact == {"lag": {"log_ids": [vault]}}
    assert "5123" not in result.text
    assert "Grey" not in result.text
    short = asked(memory.as_tool(min_score=-1, max_chars=20))
    assert short.artifact == {"lag": {"log_ids": [vault]}}
    assert "7741" not in short.text
    assert "…" in short.text


def test_an_agent_uses_it(memory):
    (vault,) = added(memory, VAULT)
    model = FakeChatModel(call("recall_logs", query=QUERY), "It is 7741.")
    state = create_agent(model, [memory.as_tool()]).invoke({"messages": QUERY})
    (result,) = [one for one in state["messages"] if isinstance(one, ToolMessage)]
    assert result.artifact == {"lag": {"log_ids": [vault]}}
    assert "7741" in model.seen[1][-1].text


def test_a_memory_that_fails_costs_the_agent_nothing(memory, caplog):
    tool = memory.as_tool()
    memory.close()
    with caplog.at_level(logging.DEBUG, "lag_integrations.langchain"):
        result = asked(tool, "my secret question")
    assert result.artifact == {"lag": {"log_ids": []}}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "secret" not in caplog.text


def test_a_wrong_embedder_is_seen(memory, tmp_path):
    added(memory, VAULT)
    with (
        KVLogMemory(memory.path, embedder=lambda texts: [[1.0, 0.0]] * len(texts)) as other,
        pytest.raises(EmbedderMismatchError),
    ):
        asked(other.as_tool())

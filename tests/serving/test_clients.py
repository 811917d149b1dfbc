"""Clients of OpenAI's API, with nothing changed but the base URL."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa
from tests.serving.conftest import Stock, find_stock, serving

TASK = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")
TOO_SMALL = "A model of 135M parameters answers in words where it may; it must be made to call."
WORDS = "Random weights call tools with any words."


@pytest.fixture
def model(server):
    return ChatOpenAI(
        model="small", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=60
    )


def test_langchains_chat_openai(model):
    whole = model.invoke("Where is the key?", max_tokens=8)
    assert whole.usage_metadata["output_tokens"] == 8
    streamed = list(model.stream("Where is the key?", max_tokens=8, stream_usage=True))
    assert "".join(chunk.content for chunk in streamed) == whole.content
    assert sum(streamed[1:], streamed[0]).usage_metadata["output_tokens"] == 8
    assert asyncio.run(model.ainvoke("Where is the key?", max_tokens=8)).content == whole.content

    asked = [HumanMessage("How many bolts are there?")]
    called = model.bind_tools([find_stock], tool_choice="required").invoke(asked)
    (call,) = called.tool_calls
    assert call["name"] == "find_stock"
    result = ToolMessage(find_stock.invoke(call["args"]), tool_call_id=call["id"])
    assert model.invoke([*asked, called, result], max_tokens=4).content is not None
    assert isinstance(model.with_structured_output(Stock).invoke(asked), Stock)


class _Served:
    """LangChain's standard tests through a server."""

    @pytest.fixture(scope="class")
    @staticmethod
    def vcr_config():
        return {"ignore_localhost": True}

    @pytest.fixture(autouse=True)
    def _serve(self, request, open_memory):
        self._open_memory = open_memory
        engine = request.getfixturevalue(self.engine)
        with serving(engine, open_memory, name="served") as server:
            self._url = f"{server.url}/v1"
            yield

    @property
    def chat_model_params(self):
        settings = {"temperature": 0, "max_tokens": 60, "api_key": "none"}
        return {"model": "served", "base_url": self._url, **settings}

    @property
    def supports_json_mode(self):
        return True


@pytest.mark.slow
class TestChatOpenAI(_Served, ChatModelIntegrationTests):
    """On the real model: OpenAI's client refuses objects that end at the limit of the length."""

    engine = "engine"

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {**super().chat_model_params, "stream_usage": True, "max_tokens": 120}

    @pytest.mark.xfail(reason=TOO_SMALL)
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="JSON mode has no schema here, and the model writes no object.")
    def test_json_mode(self, model):
        super().test_json_mode(model)


@pytest.mark.slow
class TestRemoteModel(_Served, ChatModelIntegrationTests):
    """On random weights: words may be any, and forms must be right all the same."""

    engine = "small"

    @property
    def chat_model_class(self):
        return LAGChatModel

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream=False):
        with self._open_memory("default") as memory:
            memory.add(TASK)
            memory.flush()
        model = LAGChatModel(**self.chat_model_params)
        chunks = list(model.stream(TASK.task))
        return sum(chunks[1:], chunks[0]) if stream else model.invoke(TASK.task)

    @pytest.mark.xfail(reason=WORDS)
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason=WORDS)
    def test_tool_calling(self, model):
        super().test_tool_calling(model)

    @pytest.mark.xfail(reason=WORDS)
    async def test_tool_calling_async(self, model):
        await super().test_tool_calling_async(model)

    @pytest.mark.xfail(reason=WORDS)
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)

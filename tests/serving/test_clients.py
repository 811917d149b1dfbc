"""Clients of OpenAI's API, with nothing changed but the base URL."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from pydantic import BaseModel

from tests.serving.conftest import serving


@tool
def find_stock(item: str) -> str:
    """Say how many pieces of an item there are."""
    return f"12 of {item}"


class Stock(BaseModel):
    """Pieces of an item."""

    pieces: int
    known: bool


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


@pytest.mark.slow
class TestStandard(ChatModelIntegrationTests):
    """LangChain's standard tests, of the real packaged model."""

    @pytest.fixture(scope="class", autouse=True)
    def _server(self, engine, embedder, tmp_path_factory, request):
        from lag_integrations import KVLogMemory

        folder = tmp_path_factory.mktemp("served")
        with serving(
            engine, lambda name: KVLogMemory(folder, namespace=name, embedder=embedder), name="m"
        ) as server:
            request.cls.url = f"{server.url}/v1"
            yield

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"model": "m", "base_url": self.url, "api_key": "none", "temperature": 0}

    @property
    def supports_json_mode(self):
        return True

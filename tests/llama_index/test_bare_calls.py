"""Calls that a model writes without the marks of its template, through LAGLLM and agents."""

from __future__ import annotations

import asyncio

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.tools import FunctionTool

from tests.helpers import captured
from tests.llama_index.fake_llm import transcript

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
WAYS = [CALL, f"```json\n{CALL}\n```", f"[{CALL}]"]
WRONG = '{"name": "weather", "arguments": {"city": 3}}'


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Rain in {city}."


TOOLS = [FunctionTool.from_defaults(weather)]


def ways_of(llm):
    """The response to a question, asked for in every way."""

    async def twins():
        stream = await llm.astream_chat_with_tools(TOOLS, "Weather?")
        streamed = [response async for response in stream]
        return await llm.achat_with_tools(TOOLS, "Weather?"), streamed[-1]

    *_, streamed = llm.stream_chat_with_tools(TOOLS, "Weather?")
    return [llm.chat_with_tools(TOOLS, "Weather?"), streamed, *asyncio.run(twins())]


def selected(llm, response):
    calls = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    return [(call.tool_name, call.tool_kwargs) for call in calls]


@pytest.mark.parametrize("text", WAYS)
def test_a_call_is_a_call_however_it_is_written(puppet_llm, puppet, text):
    puppet.says(text)
    for response in ways_of(puppet_llm):
        assert selected(puppet_llm, response) == [("weather", {"city": "Oslo"})]
        assert not response.message.content


def test_what_is_no_call_stays_text(puppet_llm, puppet):
    for text in (f"I would write {CALL}", CALL.replace("weather", "climate")):
        puppet.says(text)
        for response in ways_of(puppet_llm):
            assert selected(puppet_llm, response) == []
            assert response.message.content == text


def test_a_call_that_cannot_be_read_says_why(puppet_llm, puppet):
    puppet.says(WRONG)
    for response in ways_of(puppet_llm):
        assert selected(puppet_llm, response) == []
        (invalid,) = response.message.additional_kwargs["invalid_tool_calls"]
        assert (invalid["name"], invalid["args"]) == ("weather", '{"city": 3}')
        assert "3 is not of type 'string'" in invalid["error"]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.usefixtures("no_worker")
def test_an_agent_runs_its_tool(puppet_llm, puppet, memory, streaming):
    async def run():
        with memory.capture():
            agent = FunctionAgent(llm=puppet_llm, tools=TOOLS, streaming=streaming)
            return await agent.run("Weather?")

    for text in WAYS:
        puppet.says(text, "It rains.")
        output = asyncio.run(run())
        assert output.response.content == "It rains."
        trace = captured(memory)[-1]
        assert trace.outcome == "success"
        assert transcript(trace)[-3:] == [
            ("assistant", "weather"),
            ("tool", "Rain in Oslo."),
            ("assistant", "It rains."),
        ]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("text", [WRONG, "It is <tool_call>\n{weather}\n</tool_call>"])
@pytest.mark.usefixtures("no_worker")
def test_a_run_that_ends_with_an_unreadable_call_is_a_failure(
    puppet_llm, puppet, monkeypatch, memory, text, streaming
):
    monkeypatch.setattr("lag_integrations.engine.engine.can_constrain", lambda: False)

    async def run():
        with memory.capture():
            agent = FunctionAgent(llm=puppet_llm, tools=TOOLS, streaming=streaming)
            await agent.run("Weather?")

    for answers in ((CALL, text), (text,)):
        puppet.says(*answers)
        asyncio.run(run())
        assert captured(memory)[-1].outcome == "failure"
        (last,) = captured(memory)[-1].messages[-1].tool_calls
        assert isinstance(last.args, str)
    with memory.capture():
        puppet_llm.chat_with_tools(TOOLS, "Weather, asked at once?")
    assert captured(memory)[-1].outcome == "failure"

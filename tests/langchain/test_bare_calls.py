"""Calls that a model writes without the marks of its template, through LAGChatModel and agents."""

from __future__ import annotations

import asyncio
import json

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from transformers import AutoTokenizer

from lag_integrations import packaged
from lag_integrations.langchain import LAGChatModel
from tests.fake_engine import FakeEngine, calls
from tests.helpers import captured
from tests.langchain.fake_chat_model import said

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
OTHER = CALL.replace("Oslo", "Lima")
WAYS = {
    "bare": CALL,
    "fenced": f"```json\n{CALL}\n```",
    "list": f"[{CALL}]",
    "marked": calls("weather", city="Oslo"),
}
WRONG = {
    '{"name": "weather", "arguments": {"city": 3}}': "3 is not of type 'string'",
    '{"name": "weather", "arguments": {"city": "Os': "cut off",
    '```json\n{"name": "weather", "arguments": {"city": }}\n```': "Expecting value",
}
ASKED = {"messages": [("user", "Weather in Oslo?")]}


@tool
def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Rain in {city}"


@pytest.fixture(scope="module")
def puppet():
    return FakeEngine(AutoTokenizer.from_pretrained(packaged.chat_model()))


@pytest.fixture(params=[True, False], ids=["held", "free"])
def model(puppet, request, monkeypatch):
    """With llguidance, marked calls are held to their schemas; all else has to remain possible."""
    if not request.param:
        monkeypatch.setattr("lag_integrations.engine.engine.can_constrain", lambda: False)
    return LAGChatModel(puppet, temperature=0, max_tokens=200)


def named(message):
    return [(call["name"], call["args"]) for call in message.tool_calls]


def merged(chunks):
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


def ways_of(bound):
    """The answer to a question, asked for in every way."""

    async def twins():
        streamed = [chunk async for chunk in bound.astream("Weather?")]
        return await bound.ainvoke("Weather?"), merged(streamed)

    streamed = merged(list(bound.stream("Weather?")))
    return [bound.invoke("Weather?"), streamed, *asyncio.run(twins())]


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_a_call_is_a_call_however_it_is_written(model, puppet, text):
    puppet.says(text)
    for answer in ways_of(model.bind_tools([weather])):
        assert named(answer) == [("weather", {"city": "Oslo"})]
        assert (answer.content, answer.invalid_tool_calls) == ("", [])


def test_parallel_calls(model, puppet):
    for text in (f"{CALL}\n{OTHER}", f"[{CALL}, {OTHER}]"):
        puppet.says(text)
        for answer in ways_of(model.bind_tools([weather])):
            assert named(answer) == [("weather", {"city": city}) for city in ("Oslo", "Lima")]
            assert len({call["id"] for call in answer.tool_calls}) == 2
        for answer in ways_of(model.bind_tools([weather], parallel_tool_calls=False)):
            assert named(answer) == [("weather", {"city": "Oslo"})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        CALL.replace("weather", "climate"),
        f"I would write {CALL}",
        f"```json\n{CALL}\n```\nasks for it.",
    ],
)
def test_what_is_no_call_stays_text(model, puppet, text):
    puppet.says(text)
    for answer in ways_of(model.bind_tools([weather])):
        assert (answer.content, answer.tool_calls, answer.invalid_tool_calls) == (text, [], [])


def test_text_flows_and_a_call_is_one_chunk(model, puppet):
    bound = model.bind_tools([weather])
    puppet.says("It rains in Oslo today, and {this} too.")
    texts = [chunk.text for chunk in bound.stream("Weather?") if chunk.text]
    assert len(texts) > 5
    puppet.says(WAYS["fenced"])
    chunks = list(bound.stream("Weather?"))
    (call,) = [call for chunk in chunks for call in chunk.tool_call_chunks]
    assert (call["name"], json.loads(call["args"])) == ("weather", {"city": "Oslo"})
    assert not any(chunk.text for chunk in chunks)


@pytest.mark.parametrize(("text", "error"), WRONG.items())
def test_a_call_that_cannot_be_read_says_why(model, puppet, text, error):
    puppet.says(text)
    bound = model.bind_tools([weather])
    for answer in ways_of(bound):
        (invalid,) = answer.invalid_tool_calls
        assert invalid["name"] == "weather"
        assert (answer.content, answer.tool_calls) == ("", [])
    assert error in bound.invoke("Weather?").invalid_tool_calls[0]["error"]
    told = [call for chunk in bound.stream("Weather?") for call in chunk.invalid_tool_calls]
    assert [error in call["error"] for call in told] == [True]


def test_an_object_that_is_asked_for_is_no_call(puppet):
    model = LAGChatModel(puppet, temperature=0, max_tokens=200)
    city = {"type": "object", "properties": {"city": {"type": "string"}}}
    properties = {"name": {"type": "string"}, "arguments": city}
    schema = {"type": "object", "properties": properties, "required": ["name", "arguments"]}
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    puppet.says(CALL)
    answer = model.bind_tools([weather], response_format=form).invoke("Weather?")
    assert (json.loads(answer.content), answer.tool_calls) == (json.loads(CALL), [])


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
@pytest.mark.usefixtures("no_worker")
def test_an_agent_runs_its_tool(model, puppet, memory, text):
    config = {"callbacks": [memory.callback_handler()]}
    for way in ("invoke", "stream"):
        puppet.says(text, "It rains.")
        agent = create_agent(model, [weather])
        if way == "invoke":
            messages = agent.invoke(ASKED, config)["messages"]
        else:
            *_, (_, last) = agent.stream(ASKED, config, stream_mode=["messages", "values"])
            messages = last["messages"]
        assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
        assert [messages[2].text, messages[3].text] == ["Rain in Oslo", "It rains."]
        assert captured(memory)[-1].outcome == "success"


@pytest.mark.parametrize("text", [*WRONG, "<tool_call>\n{weather}\n</tool_call>"])
@pytest.mark.usefixtures("no_worker")
def test_a_run_that_ends_with_an_unreadable_call_is_a_failure(puppet, monkeypatch, memory, text):
    monkeypatch.setattr("lag_integrations.engine.engine.can_constrain", lambda: False)
    model = LAGChatModel(puppet, temperature=0, max_tokens=200)
    bound = model.bind_tools([weather])
    judged = []
    handler = memory.callback_handler(judge=judged.append)
    config = {"callbacks": [handler]}
    puppet.says(CALL, text)
    create_agent(model, [weather]).invoke(ASKED, config)
    puppet.says(text)
    bound.invoke("Weather?", config)
    list(bound.stream("Weather, streamed?", config))
    handler.wait_for_judge()
    assert [trace.outcome for trace in captured(memory)] == ["failure"] * 3
    assert judged == []
    assert said(captured(memory)[0])[2] == "tool: Rain in Oslo"


@pytest.mark.usefixtures("no_worker")
def test_a_run_that_goes_on_after_an_unreadable_call_may_succeed(puppet, memory):
    bound = LAGChatModel(puppet, temperature=0, max_tokens=200).bind_tools([weather])
    puppet.says(next(iter(WRONG)), "It rains.")
    chain = bound | (lambda message: bound.invoke([("user", "Again?"), message]))
    chain.invoke("Weather?", {"callbacks": [memory.callback_handler()]})
    assert [trace.outcome for trace in captured(memory)] == ["success"]


@pytest.mark.usefixtures("no_worker")
def test_a_run_that_is_cut_off_is_incomplete_and_has_no_half_a_mark(puppet, monkeypatch, memory):
    monkeypatch.setattr("lag_integrations.engine.engine.can_constrain", lambda: False)
    model = LAGChatModel(puppet, temperature=0, callbacks=[memory.callback_handler()])
    bound = model.bind_tools([weather])
    whole = f"Let me see.\n\n{calls('weather', city='Oslo')}"
    for begun, broken in (("<tool_call", 0), ("<tool_call>\n{", 1)):
        shown = whole[: whole.index(begun) + len(begun)]
        puppet.says(whole)
        answer = bound.bind(max_tokens=len(puppet.tokens_of(shown))).invoke("Weather?")
        assert answer.response_metadata["finish_reason"] == "length"
        assert answer.text == "Let me see."
        assert len(answer.invalid_tool_calls) == broken
    assert [trace.outcome for trace in captured(memory)] == ["incomplete"] * 2
    assert captured(memory)[0].last_response == "Let me see."

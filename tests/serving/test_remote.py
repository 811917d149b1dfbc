"""`LAGChatModel` and `LAGLLM` whose model runs at `kvlog serve`: as if it ran here."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool

from lag_integrations.errors import (
    ConstraintError,
    ContextWindowError,
    RemoteModelError,
    SettingsError,
)
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM, LAGMemory
from tests.conftest import qa
from tests.helpers import wait_until
from tests.serving.conftest import Stock, find_stock

ASKED = "Where is the key?"


def elsewhere(server, **settings):
    settings = {"temperature": 0, "max_tokens": 8, "max_retries": 0, **settings}
    return LAGChatModel("small", base_url=f"{server.url}/v1", **settings)


@pytest.fixture
def here(small):
    return LAGChatModel(small, temperature=0, max_tokens=8)


def told(message):
    """What must not depend on where the model runs."""
    metadata = message.response_metadata
    calls = [(call["name"], call["args"]) for call in message.tool_calls]
    logprobs = [one["logprob"] for one in (metadata.get("logprobs") or {}).get("content", ())]
    usage = {**message.usage_metadata, "input_token_details": None}
    rounded = [round(one, 3) for one in logprobs]
    return message.content, calls, metadata["finish_reason"], rounded, usage


def test_it_answers_as_here(server, here):
    there = elsewhere(server, k=0)  # of what it said before
    for settings in (
        {},
        {"top_logprobs": 2, "logprobs": True},
        {"stop": ["e"]},
        {"temperature": 1.0, "seed": 7, "top_k": 40},
    ):
        assert told(there.invoke(ASKED, **settings)) == told(here.invoke(ASKED, **settings))
    assert told(asyncio.run(there.ainvoke(ASKED))) == told(here.invoke(ASKED))
    chunks = list(there.stream(ASKED))
    assert len(chunks) > 2
    assert told(sum(chunks[1:], chunks[0])) == told(here.invoke(ASKED))

    async def streamed():
        return [chunk async for chunk in there.astream(ASKED)]

    chunks = asyncio.run(streamed())
    assert told(sum(chunks[1:], chunks[0])) == told(here.invoke(ASKED))
    assert [told(one) for one in there.batch([ASKED] * 3)] == [told(here.invoke(ASKED))] * 3
    assert there.get_token_ids(ASKED) == here.get_token_ids(ASKED)
    messages = [HumanMessage(ASKED)]
    assert there.get_num_tokens_from_messages(messages) == here.get_num_tokens_from_messages(
        messages
    )


def test_tools_and_forms(server, here):
    there = elsewhere(server, max_tokens=60)
    for choice in ("any", "find_stock", {"type": "function", "function": {"name": "find_stock"}}):
        both = [
            model.bind_tools([find_stock], tool_choice=choice).invoke(ASKED, max_tokens=60)
            for model in (there, here)
        ]
        assert told(both[0]) == told(both[1])
        assert both[0].tool_calls
    assert isinstance(there.with_structured_output(Stock).invoke(ASKED), Stock)


def test_runs_are_recalled_and_captured_there(server, open_memory):
    with open_memory("default") as memory:
        key = memory.add(qa(ASKED, "Behind the red door.", outcome="success"))
        memory.flush()
        there = elsewhere(server)
        answer = there.invoke(ASKED, {"metadata": {"user_id": "ada", "thread_id": "t"}})
        lag = answer.response_metadata["lag"]
        assert (lag["log_ids"], lag["form"]) == ([key], "kv")
        assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
        (log,) = memory.get(lag["log_id"])
        assert log.trace.id == lag["run_id"]
        assert log.trace.metadata["user_id"] == "ada"
        assert log.trace.metadata["thread_id"] == "t"
        assert there.invoke(ASKED, k=0).response_metadata["lag"]["log_ids"] == []
        refused = there.invoke(ASKED, where=lambda config: 1 / 0)
        assert refused.response_metadata["lag"]["log_ids"] == []
        named = there.invoke("Hello.", kv_log_ids=[key], logs_as_text=True)
        assert named.response_metadata["lag"]["read_as_text"] == [key]


def test_errors_are_those_of_a_model_here(server, here):
    there = elsewhere(server)
    long = "key " * 4_000
    for model in (there, here):
        with pytest.raises(ContextWindowError, match="window"):
            model.invoke(long)
        with pytest.raises(SettingsError, match="top_p"):
            model.invoke(ASKED, top_p=7.0)
        for timeout in (0, 1e-9):
            with pytest.raises(TimeoutError):
                model.invoke(ASKED, timeout=timeout)
        with pytest.raises(ConstraintError):
            model.invoke(
                ASKED,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nothing"}},
                },
            )
    with pytest.raises(RemoteModelError, match="no model 'other'"):
        LAGChatModel("other", base_url=f"{server.url}/v1", max_retries=0).invoke(ASKED)
    with pytest.raises(RemoteModelError, match="running there"):
        LAGChatModel("small", base_url="http://127.0.0.1:9/v1", max_retries=0).invoke(ASKED)
    with pytest.raises(SettingsError, match="no engine here"):
        _ = there.engine


def test_a_timeout_within_an_answer_is_one(server, small, monkeypatch):
    there = elsewhere(server, max_tokens=1_500, timeout=0.4)
    with pytest.raises(TimeoutError):
        there.invoke(ASKED)
    with pytest.raises(TimeoutError):
        list(there.stream(ASKED))
    with pytest.raises(TimeoutError):
        asyncio.run(there.ainvoke(ASKED))


def test_what_would_be_ignored_is_refused(server, here, open_memory):
    there = elsewhere(server)
    for settings in ({"share_system": True}, {"temprature": 1}, {"lag": {"capture": False}}):
        with pytest.raises(SettingsError):
            there.invoke(ASKED, **settings)
    with pytest.raises(SettingsError, match="capture"):
        here.invoke(ASKED, capture=False)
    assert there.invoke(ASKED, capture=False).response_metadata["lag"]["log_id"] is None
    with pytest.raises(ValueError, match="cache"):
        elsewhere(server, cache=True)
    config = {"metadata": {"project": "x", "langgraph_step": 3}}
    log_id = there.invoke("Hello.", config).response_metadata["lag"]["log_id"]
    with open_memory("default") as memory:
        (log,) = memory.get(log_id)
        assert log.trace.metadata["project"] == "x"
        assert "langgraph_step" not in log.trace.metadata


def test_each_event_loop_has_its_own_connections(server):
    there = elsewhere(server)
    for _ in range(4):
        asyncio.run(there.ainvoke(ASKED))
    assert len(there.shared._async_clients) == 1
    there.close()
    assert there.invoke(ASKED).content


@pytest.mark.parametrize(
    "settings",
    [{"dtype": "float32"}, {"quantization": "int8"}, {"chat_template": "x"}, {"device": "cpu"}],
    ids=str,
)
def test_settings_of_a_model_here_are_refused(settings):
    with pytest.raises(ValueError, match="no effect on a model at base_url"):
        LAGChatModel("small", base_url="http://127.0.0.1:9/v1", **settings)


def test_a_memory_here_is_no_memory_there(server, open_memory):
    with open_memory("here") as memory, pytest.raises(ValueError, match="memory= has no effect"):
        elsewhere(server, memory=memory)


SAID = "One line\u2028another\u0085a third"  # in one line of the stream


class Busy(BaseHTTPRequestHandler):
    """Refuses twice, then breaks off, then ends well."""

    seen = 0

    def do_POST(self):
        Busy.seen += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        if Busy.seen <= 2:
            self.send_response(503)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        delta = {"choices": [{"index": 0, "delta": {"content": SAID}, "finish_reason": None}]}
        self.wfile.write(f"data: {json.dumps(delta, ensure_ascii=False)}\n\n".encode())
        if Busy.seen > 3:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


def test_calls_that_could_not_be_begun_are_tried_again():
    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        model = LAGChatModel("m", base_url=f"http://127.0.0.1:{server.server_port}/v1")
        try:
            with pytest.raises(RemoteModelError, match="broke off"):
                model.invoke(ASKED)
            assert Busy.seen == 3
            assert model.invoke(ASKED).content == SAID
        finally:
            server.shutdown()
            thread.join()


def test_who_stops_reading_stops_the_model(server, client):
    def running():
        lines = client.get("/metrics").text.splitlines()
        return any(line == "lag_answers_running 1.0" for line in lines)

    stream = elsewhere(server, max_tokens=1_500).stream(ASKED)
    next(stream)
    stream.close()
    wait_until(lambda: not running())


async def test_llama_index(server, small, open_memory):
    settings = {"temperature": 0, "max_tokens": 8}
    there = LAGLLM("small", base_url=f"{server.url}/v1", max_retries=0, **settings)
    here = LAGLLM(small, **settings)
    assert there.metadata == here.metadata.model_copy(update={"model_name": "small"})
    messages = [ChatMessage(role="user", content=ASKED)]
    expected = here.chat(messages)
    for response in (
        there.chat(messages),
        await there.achat(messages),
        list(there.stream_chat(messages))[-1],
        [part async for part in await there.astream_chat(messages)][-1],
    ):
        assert response.message.content == expected.message.content
        assert response.raw["usage"]["prompt_tokens"] == expected.raw["usage"]["prompt_tokens"]
    tools = [FunctionTool.from_defaults(lambda item: item, name="find", description="Finds.")]
    called = there.chat_with_tools(tools, ASKED, tool_required=True, max_tokens=60)
    assert there.get_tool_calls_from_response(called)[0].tool_name == "find"
    with open_memory("here") as memory:
        memory.add(qa(ASKED, "Behind the red door.", outcome="success"))
        memory.flush()
        from llama_index.core.chat_engine import SimpleChatEngine

        assert there.chat(messages).raw["lag"]["run_id"]

        engine = SimpleChatEngine.from_defaults(llm=there, memory=LAGMemory(memory))
        with pytest.raises(SettingsError, match="as_text=True"):
            engine.chat(ASKED)
        as_text = LAGMemory(memory, as_text=True)
        assert SimpleChatEngine.from_defaults(llm=there, memory=as_text).chat(ASKED).response


PROGRAM = """
import sys
for name in ("torch", "transformers", "sentence_transformers"):
    sys.modules[name] = None  # importing it raises
url = sys.argv[1]
from lag_integrations.langchain import LAGChatModel
print(LAGChatModel("small", base_url=url, temperature=0, max_tokens=4).invoke("Hi.").content)
from lag_integrations.llama_index import LAGLLM
print(LAGLLM("small", base_url=url, temperature=0, max_tokens=4).complete("Hi.").text)
"""


def test_a_client_needs_no_torch(server, here):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"{server.url}/v1"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    text = here.invoke("Hi.", max_tokens=4).content
    assert run.stdout.splitlines() == [text, text]

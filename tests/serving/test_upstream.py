"""`kvlog serve --upstream`: another server's model answers, and is given logs as text."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import httpx
import pytest

from lag_integrations import KVLogMemory
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.serving.server import Server
from lag_integrations.serving.upstream import UpstreamModel
from tests.conftest import qa
from tests.serving.conftest import ask, events, running_server

ANSWER = "Behind the red door."


class Upstream(BaseHTTPRequestHandler):
    """A server with OpenAI's API, and what it was asked."""

    asked: ClassVar[list[dict]] = []
    key: str | None = None

    def do_POST(self):
        type(self).asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        type(self).key = self.headers["Authorization"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        call = {"index": 0, "id": "a", "function": {"name": "find", "arguments": '{"item"'}}
        rest = {"index": 0, "function": {"arguments": ': "bolt"}'}}
        if "tools" in self.asked[-1]:
            deltas = [{"tool_calls": [call]}, {"tool_calls": [rest]}]
        else:
            deltas = [{"role": "assistant", "content": "It is "}, {"content": "there."}]
        chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
        usage["prompt_tokens_details"] = {"cached_tokens": 16}
        chunks.append({"choices": [], "usage": usage})
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def upstream():
    Upstream.asked = []
    with HTTPServer(("127.0.0.1", 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def gateway(url, open_memory):
    settings = ModelSettings(model="big", base_url=url, api_key="a-key", max_retries=0)
    return running_server(Server(UpstreamModel(settings), open_memory, name="small"))


def test_logs_go_as_text_and_runs_are_captured(upstream, open_memory):
    with open_memory("default") as memory:
        key = memory.add(qa("Where is the key?", ANSWER, outcome="success"))
        memory.flush()
    with (
        gateway(upstream, open_memory) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        whole = ask(client).raise_for_status().json()
        assert whole["choices"][0]["message"]["content"] == "It is there."
        assert whole["usage"]["prompt_tokens"] == 20
        assert "prompt_tokens_details" not in whole["usage"]  # of other tenants
        lag = whole["lag"]
        assert (lag["log_ids"], lag["form"], lag["read_as_text"]) == ([key], "text", [key])
        (asked,) = Upstream.asked
        assert ANSWER in asked["messages"][-1]["content"]
        assert asked["model"] == "big"
        assert "lag" not in asked
        assert Upstream.key == "Bearer a-key"
        log = client.get(f"/v1/lag/logs/{lag['log_id']}").json()
        assert log["messages"][0]["content"] == "Where is the key?"  # without what was recalled
        assert log["outcome"] == "success"
        chunks = events(ask(client, stream=True))
        said = [one["choices"][0]["delta"].get("content", "") for one in chunks]
        assert "".join(said) == "It is there."
        tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
        called = ask(client, tools=tools).json()["choices"][0]
        (call,) = called["message"]["tool_calls"]
        assert call["function"] == {"name": "find", "arguments": '{"item": "bolt"}'}
        for choice in ("any", "find"):
            ask(client, tools=tools, tool_choice=choice)
        named = {"type": "function", "function": {"name": "find"}}
        assert [one["tool_choice"] for one in Upstream.asked[-2:]] == ["required", named]
        assert client.get("/v1/models").json()["data"][0]["max_model_len"] is None
        body = {"model": "small", "text": "a"}
        assert client.post("/v1/lag/tokenize", json=body).status_code == 400
        assert 'lag_logs_used_total{form="text"}' in client.get("/metrics").text


def test_an_upstream_that_is_down_is_said(open_memory):
    with (
        gateway("http://127.0.0.1:9/v1", open_memory) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        reply = ask(client)
        assert reply.status_code == 502
        assert "cannot be reached" in reply.json()["error"]["message"]
        assert "127.0.0.1:9" not in reply.text
        assert client.get("/v1/lag/logs").json()["data"] == []


def test_long_logs_are_left_out(upstream, tmp_path, embedder):
    with KVLogMemory(tmp_path / "memory", embedder=embedder) as memory:
        memory.add(qa("Where is the key?", "word " * 200, outcome="success"))
        memory.flush()
        model = UpstreamModel(ModelSettings(model="big", base_url=upstream), max_chars=100)
        found = memory.recall("Where is the key?")
        assert len(found) == 1
        assert model._fitting(found) == []

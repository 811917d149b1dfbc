"""The gateway, through its API."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import httpx
import jsonschema
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lag_integrations.errors import LAGError
from lag_integrations.serving import chat_service
from lag_integrations.serving.api_types import ChatCompletionRequest
from tests.helpers import wait_until
from tests.serving.conftest import ask, events, serving

TOOL = {
    "type": "function",
    "function": {
        "name": "find_stock",
        "description": "Says how many pieces there are.",
        "parameters": {"type": "object", "properties": {"item": {"const": "bolt"}}},
    },
}


def logs_of(client):
    return client.get("/v1/lag/logs").json()["data"]


def log_of(client, **which):
    (log,) = [one for one in logs_of(client) if all(one[k] == v for k, v in which.items())]
    return client.get(f"/v1/lag/logs/{log['id']}").json()


def test_an_answer_and_a_stream_of_it_are_the_same(client):
    whole = ask(client).raise_for_status().json()
    choice = whole["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    chunks = events(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(
        chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]
    )
    assert text == choice["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert chunks[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert chunks[-2]["lag"]["log_id"] == whole["lag"]["log_id"]  # equal runs are one log


def test_a_run_becomes_a_log_that_is_recalled(client, open_memory):
    first = ask(client).json()["lag"]
    assert first["log_ids"] == []
    (log,) = logs_of(client)
    assert (log["id"], log["run_id"]) == (first["log_id"], first["run_id"])
    assert log["outcome"] == "incomplete"  # cut off for length
    said = {"run_id": first["run_id"], "outcome": "success"}
    assert client.post("/v1/lag/feedback", json=said).json() == {"status": "recorded"}
    with open_memory("default") as memory:
        memory.flush()
    again = ask(client, "Where is the key, please?").json()
    assert again["lag"]["log_ids"] == [first["log_id"]]
    assert again["lag"]["form"] == "kv"
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert log_of(client, id=again["lag"]["log_id"])["task"] == "Where is the key, please?"
    without = ask(client, "Where is the key?", lag={"k": 0, "capture": False}).json()["lag"]
    assert (without["log_ids"], without["log_id"]) == ([], None)
    assert client.delete(f"/v1/lag/logs/{first['log_id']}").json()["deleted"]
    assert client.get(f"/v1/lag/logs/{first['log_id']}").status_code == 404


def test_a_run_of_several_calls_is_one_log(client):
    asked = [
        {"role": "system", "content": "You look things up."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "How many bolts are there?"},
    ]
    common = {"tools": [TOOL], "user": "ada", "metadata": {"project": "x", "thread_id": "7"}}
    answer = ask(client, messages=asked, tool_choice="required", max_tokens=60, **common).json()
    message = answer["choices"][0]["message"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["lag"]["run_id"] is None
    assert logs_of(client) == []
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "find_stock"
    assert json.loads(call["function"]["arguments"]).keys() <= {"item"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "12"}
    ended = ask(client, messages=[*asked, message, result], tool_choice="none", **common).json()
    log = log_of(client, id=ended["lag"]["log_id"])
    assert [one["role"] for one in log["messages"]] == [
        *("system", "user", "assistant", "tool", "assistant")
    ]
    assert log["task"] == "How many bolts are there?"
    assert log["metadata"]["project"] == "x"
    assert (log["metadata"]["user_id"], log["metadata"]["thread_id"]) == ("ada", "7")


def test_an_answer_has_the_form_that_is_asked_for(client):
    schema = {"type": "object", "properties": {"pieces": {"type": "integer", "maximum": 99}}}
    schema |= {"required": ["pieces"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "stock", "schema": schema}}
    text = ask(client, response_format=form, max_tokens=40).json()["choices"][0]["message"]
    jsonschema.validate(json.loads(text["content"]), schema)
    told = ask(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert all(len(one["top_logprobs"]) == 2 for one in told)


DEEP = '{"model": "small", "messages": [{"role": "user", "content": ' + "[" * 100_000
SECRET = "my secret is Rosebud"


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "gpt-5"}, 404, "this server has 'small'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "judge", "content": SECRET}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": {"a": SECRET}}]}, 400, "message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "image_url"),
        ({"temprature": 1}, 400, "temprature"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 7}, 400, "top_p"),
        ({"n": 3}, 400, "n:"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"tool_choice": "find_stock"}, 400, "find_stock"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_schema"}}, 400, "no schema"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"lag": {"where": {"$eq": 1}}}, 400, "filter"),
        ({"lag": {"k": -1}}, 400, "lag.k"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "two names"),
        ({"messages": [{"role": "user", "content": f"{SECRET} " * 3_000}]}, 400, "window"),
        ({"timeout": 1e-9}, 408, ""),
        ({"metadata": {"verdict": "success"}}, 400, "verdict"),
        ({"metadata": {"lag_judged": True}}, 400, "lag_judged"),
        ({"metadata": {"user_id": "bob"}, "user": "ada"}, 400, "another user"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": [1]}}]},
            400,
            "tools",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_said(client, fields, status, said):
    reply = ask(client, **fields)
    assert reply.text.isascii()
    error = reply.json()["error"]
    assert (reply.status_code, said in error["message"]) == (status, True), error
    assert "Rosebud" not in reply.text
    assert logs_of(client) == []
    assert ask(client).status_code == 200


def test_bodies_that_cannot_be_read(client):
    client.headers["Content-Type"] = "application/json"
    for body in (b"", b"{", b"[]", b"null", DEEP.encode(), b"\xff"):
        reply = client.post("/v1/chat/completions", content=body)
        assert reply.status_code == 400, reply.text
    large = b'{"model": "' + b"x" * 2**24 + b'"}'
    assert client.post("/v1/chat/completions", content=large).status_code == 413
    pieces = (b"x" * 2**20 for _ in range(20))  # which say nothing of their length
    assert client.post("/v1/chat/completions", content=pieces).status_code == 413


def test_feedback_that_says_too_little_or_too_much(client):
    for said in ({}, {"run_id": "a"}, {"run_id": "a", "outcome": "success", "helped": True}):
        assert client.post("/v1/lag/feedback", json=said).status_code == 400
    said = {"run_id": "a", "outcome": "success"}
    assert client.post("/v1/lag/feedback", json=said).status_code == 404


HALF = "half of a pair: \ud800"


def test_half_characters_break_nothing(client):
    tool = {"type": "function", "function": {"name": "find", "description": HALF}}
    body = {"model": "small", "tools": [tool], "max_tokens": 4}
    body["messages"] = [{"role": "user", "content": HALF}, {"role": "user", "content": [HALF]}]
    headers = {"Content-Type": "application/json"}
    content = json.dumps(body).encode()
    reply = client.post("/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == 200, reply.text


def test_a_failure_that_nobody_foresaw_tells_and_logs_no_words(server, client, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError(SECRET)

    service = server.app.state.gateway.service
    monkeypatch.setattr(type(service.backend), "respond", fail)
    reply = ask(client)
    assert (reply.status_code, "RuntimeError" in reply.text) == (500, True)
    assert "Rosebud" not in reply.text
    assert all("Rosebud" not in one.getMessage() for one in caplog.records)
    assert all(one.exc_info is None for one in caplog.records if one.levelno > logging.DEBUG)
    assert 'status="500"' in client.get("/metrics").text


def test_an_answer_that_ended_before_its_reader_left_is_not_a_success(server, client):
    """The model is ahead of its reader."""
    service, memory = server.app.state.gateway.service, server.app.state.gateway.memories
    asked = ChatCompletionRequest(
        model="small", messages=[{"role": "user", "content": "Hi."}], temperature=0, max_tokens=8
    )

    async def leave():
        turn = await service.begin(memory.of("default"), asked)
        deltas = turn.deltas()
        await anext(deltas)
        wait_until(lambda: turn.reply.finish_reason != "cancelled")
        await deltas.aclose()

    asyncio.run(leave())
    (log,) = logs_of(client)
    assert (log["outcome"], log["metadata"]["abandoned"], log["times_seen"]) == (
        *("incomplete", True, 1),
    )


def test_documents_of_a_conversation_are_known(client):
    source = {"id": "1", "documents": ["manual.pdf"], "hash": "abc"}
    log_id = ask(client, lag={"sources": [source]}).json()["lag"]["log_id"]
    log = log_of(client, id=log_id)
    assert log["source"] == "document"
    assert log["metadata"]["sources"][0]["documents"] == ["manual.pdf"]


def running(client):
    (line,) = [
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("lag_answers_running ")
    ]
    return float(line.split()[1])


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_stops_the_model(server, client, stream):
    """And the run is logged as far as it came."""
    body = {"model": "small", "max_tokens": 1_500, "stream": stream, "temperature": 0}
    body["messages"] = [{"role": "user", "content": "Tell me all."}]
    content = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: "
        head += f"{len(content)}\r\nContent-Type: application/json\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: running(client) > 0)
        if stream:
            wait_until(lambda: b'"content": "' in connection.recv(4_096))
    wait_until(lambda: not running(client))
    assert f'kind="written"}} {body["max_tokens"]}.0' not in client.get("/metrics").text
    if stream:
        wait_until(lambda: bool(logs_of(client)))
        (log,) = logs_of(client)
        assert (log["outcome"], log["metadata"]["abandoned"]) == ("incomplete", True)


def test_metrics_count_and_tell_nothing(client):
    ask(client, SECRET)
    text = client.get("/metrics").text
    assert 'lag_requests_total{route="/v1/chat/completions",status="200"} 1.0' in text
    assert 'lag_tokens_total{kind="written"} 8.0' in text
    assert "Rosebud" not in text


def test_no_more_at_once_than_may_be(small, open_memory):
    with (
        serving(small, open_memory, name="small", most_at_once=1) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        with server.app.state.gateway.service.admitted():
            assert ask(client).status_code == 429
        assert ask(client, max_tokens=2).status_code == 200
        assert ask(client, max_tokens=2, stream=True).status_code == 200
        assert ask(client, max_tokens=2).status_code == 200


def test_a_taken_port_is_said(server, small, open_memory):
    port = int(server.url.rpartition(":")[2])
    with (
        pytest.raises(LAGError, match="another --port"),
        serving(small, open_memory) as other,
    ):
        other.listen("127.0.0.1", port)


def test_spans_tell_numbers_and_no_words(client, monkeypatch):
    exported = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    monkeypatch.setattr(chat_service, "_tracer", provider.get_tracer("test"))
    ask(client, SECRET)
    events(ask(client, SECRET, stream=True))
    ask(client, SECRET, timeout=0.001)
    spans = exported.get_finished_spans()
    assert [span.name for span in spans] == ["chat small"] * len(spans)
    assert len(spans) >= 2
    assert spans[0].attributes["gen_ai.usage.output_tokens"] == 8
    assert spans[0].attributes["lag.logs"] == 0
    assert "Rosebud" not in str([dict(span.attributes) for span in spans])

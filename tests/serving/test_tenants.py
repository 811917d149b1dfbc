"""Who may ask the gateway, and what of others it tells: nothing."""

from __future__ import annotations

import hashlib
import json
import time

import httpx
import pytest
from typer.testing import CliRunner

from lag_integrations.cli import app
from lag_integrations.errors import LAGError, SettingsError
from lag_integrations.serving.tenants import ApiKeys
from tests.conftest import qa
from tests.serving.conftest import ask, serving

ADA, BEN, OLD = (f"{name}-key-of-many-characters" for name in ("ada", "ben", "old"))


@pytest.fixture
def keys(tmp_path):
    file = tmp_path / "keys.json"
    digest = f"sha256:{hashlib.sha256(BEN.encode()).hexdigest()}"
    known = {
        ADA: {"namespace": "ada", "metrics": True},
        digest: {"namespace": "ben"},
        OLD: {"namespace": "ada", "expires": time.time() - 1},
    }
    file.write_text(json.dumps(known), "utf-8")
    return file


@pytest.fixture
def secured(small, open_memory, keys):
    with serving(small, open_memory, name="small", max_tokens=4, keys=keys) as server:
        yield server


def as_tenant(server, key):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60)


@pytest.mark.parametrize("key", [None, "x", "nobody's key, of many characters", OLD, ADA[:-1]])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/v1/models", "/v1/lag/logs", "/metrics")),
        *(("POST", path) for path in ("/v1/chat/completions", "/v1/lag/feedback")),
        ("DELETE", f"/v1/lag/logs/{'0' * 32}"),
    ],
)
def test_nobody_without_a_key(secured, key, method, path):
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = None if method == "GET" else {}
    reply = httpx.request(method, secured.url + path, headers=headers, json=body)
    assert reply.status_code == 401
    assert reply.json()["error"]["type"] == "authentication_error"


def test_tenants_are_told_nothing_of_each_other(secured, open_memory):
    with open_memory("ada") as memory:
        log_id = memory.add(qa("Where is the key?", "Behind the red door.", outcome="success"))
        memory.flush()
    question = "Where is the key?"
    with as_tenant(secured, ADA) as ada, as_tenant(secured, BEN) as ben:
        own = ask(ada, question).json()["lag"]
        assert own["log_ids"] == [log_id]
        first = ask(ben, question, lag={"capture": False}).json()
        assert first["lag"]["reused_tokens"] == 0
        for options in ({"log_ids": [log_id]}, {"min_score": -1, "k": 9}):
            foreign = ask(ben, question, lag={**options, "capture": False}).json()
            assert foreign["lag"]["log_ids"] == []
            assert foreign["lag"]["nearest_miss"] is None
        assert ben.get("/v1/lag/logs").json()["data"] == []
        assert ben.get(f"/v1/lag/logs/{log_id}").status_code == 404
        assert ben.delete(f"/v1/lag/logs/{log_id}").status_code == 404
        of_run = {"run_id": own["run_id"], "outcome": "failure"}
        of_log = {"log_ids": [log_id], "helped": False}
        for said in (of_run, of_log):
            assert ben.post("/v1/lag/feedback", json=said).status_code == 404
        assert ben.get("/metrics").status_code == 403
        assert "ada" not in ada.get("/metrics").text
        ids = {log["id"] for log in ada.get("/v1/lag/logs").json()["data"]}
        assert ids == {log_id, own["log_id"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "valid dictionary"),
        ("{}", "no keys"),
        ('{"short": {"namespace": "a"}}', "16"),
        (f'{{"{ADA}": {{}}}}', "Field required"),
        (f'{{"{ADA}": {{"namespace": "../x"}}}}', "namespace"),
        (f'{{"{ADA}": {{"namespace": "a", "admin": 1}}}}', "Extra inputs"),
        (f'{{"sha256:{ADA}": {{"namespace": "a"}}}}', "no hash"),
    ],
)
def test_files_of_keys_that_are_none(tmp_path, text, said):
    file = tmp_path / "keys.json"
    file.write_text(text, "utf-8")
    with pytest.raises(LAGError, match=said) as refused:
        ApiKeys.read(file)
    assert ADA not in str(refused.value)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_web_pages_cannot_ask_under_a_name_of_theirs(server, kind):
    reply = httpx.get(f"{server.url}/v1/lag/logs", headers={"Host": "evil.example"})
    assert reply.status_code == 400
    # And a form's text is no JSON.
    reply = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b'{"model": "small", "messages": [{"role": "user", "content": "Hi"}]}',
        headers={"Content-Type": kind} if kind else {},
    )
    assert reply.status_code == 415


def test_a_server_for_others_needs_keys():
    run = CliRunner().invoke(app, ["serve", "somewhere", "--host", "0.0.0.0"])
    assert run.exit_code == 1
    assert "--keys" in run.output


@pytest.mark.parametrize(
    "options",
    [
        ("--upstream", "http://127.0.0.1:9/v1", "--model", "m", "--quantization", "int8"),
        ("--upstream", "http://127.0.0.1:9/v1", "--model", "m", "--device", "cpu"),
        ("--upstream", "http://127.0.0.1:9/v1"),
        ("--upstream-key", "secret"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(tmp_path, options):
    run = CliRunner().invoke(app, ["serve", str(tmp_path / "store"), *options])
    assert run.exit_code == 1
    assert "secret" not in run.output
    assert not (tmp_path / "store").exists()


def test_keys_that_cannot_be_read_end_the_start(small, open_memory, tmp_path):
    (tmp_path / "keys.json").write_text("{}", "utf-8")
    with (
        pytest.raises(SettingsError),
        serving(small, open_memory, keys=tmp_path / "keys.json"),
    ):
        pass

"""The ``kvlog`` command: real stores, a real (static) embedder and a tiny model from folders."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from lag_integrations import KVLogMemory, Quarantine, Trace
from lag_integrations.cli import app
from lag_integrations.cli.options import parse_duration, parse_size
from lag_integrations.engine import log_settings
from lag_integrations.traces.search_keys import response_text
from tests.conftest import overwrite, qa
from tests.store.model import tiny_engine
from tests.store.test_migrations import FIRST, old_store

VAULT = qa("code of the vault", "7741", outcome="success", metadata={"city": "Lima", "year": 2025})
FERRY = qa("what does the ferry carry", "bees")
FAILED = qa("who paints the tower", "nobody", outcome="failure")
COMMANDS = ["stats", "ls", "show", "search", "add", "feedback", "delete", "export", "import"]
COMMANDS += ["backup", "restore"]
COMMANDS += ["verify", "repair", "reindex", "reencode", "learn", "prune", "purge", "migrate"]

Kvlog = Callable[..., Result]


@pytest.fixture(scope="session")
def embedder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sentence-transformers model of words, cheap to load."""
    texts = (text for trace in (VAULT, FERRY, FAILED) for text in response_text(trace).split())
    words = ["[UNK]", *dict.fromkeys(texts)]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("embedder")
    module = StaticEmbedding(tokenizer, embedding_weights=np.eye(len(words)))
    SentenceTransformer(modules=[module], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    engine = tiny_engine()
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def kvlog(embedder_folder: str, monkeypatch: pytest.MonkeyPatch) -> Kvlog:
    """Runs the command, which must end as expected."""
    for name in list(os.environ):
        if name.startswith("KVLOG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KVLOG_EMBEDDER", embedder_folder)

    def run(*arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)
        assert result.exit_code == code, result.output
        if code:
            assert result.exception is None or isinstance(result.exception, SystemExit)
            assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def filled(store: Path, kvlog: Kvlog, tmp_path: Path) -> Path:
    """A store with three logs, embedded."""
    lines = [trace.to_json() for trace in (FAILED, FERRY, VAULT)]
    file = tmp_path / "traces.jsonl"
    file.write_text("\n".join(lines))
    kvlog("add", store, file, "--flush")
    return store


def as_json(result: Result) -> Any:
    return json.loads(result.stdout)


def ids(kvlog: Kvlog, store: Path, *options: str) -> dict[str, str]:
    found = as_json(kvlog("ls", store, "--json", *options))
    return {log["task"]: log["id"] for log in found}


def test_help_is_quick_and_complete():
    script = (
        "import sys; from lag_integrations.cli import app\ntry: app()\nfinally: print(*sys.modules)"
    )
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    took = time.monotonic() - began
    assert run.returncode == 0, run.stderr
    text, loaded = run.stdout.rstrip().rsplit("\n", 1)
    for command in COMMANDS:
        assert f" {command} " in text
    assert not {"torch", "chromadb", "sqlalchemy", "transformers", "numpy"} & set(loaded.split())
    assert took < 5  # 0.3 s on a quiet machine


def test_the_version_is_shown(kvlog):
    assert kvlog("--version").stdout == f"kvlog {version('lag_integrations')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(kvlog, command):
    assert "STORE" in kvlog(command, "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["stats"],
        ["ls"],
        ["show", "abcd"],
        ["search", "x"],
        ["feedback", "abcd", "--helped"],
        ["delete", "abcd"],
        ["export", "a.zip"],
        ["verify"],
        ["repair"],
        ["reindex"],
        ["reencode", "--model", "x"],
        ["learn", "--model", "x"],
        ["prune", "--max-logs", "1"],
        ["purge", "--yes"],
        ["backup", "copy"],
        ["migrate"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_missing_store_is_refused_and_not_made(kvlog, store, arguments):
    result = kvlog(arguments[0], store, *arguments[1:], code=1)
    told = f"kvlog: There is no folder {store}. Check the path; `kvlog add` makes a store.\n"
    assert result.stderr == told
    assert result.stdout == ""
    assert not store.exists()
    store.mkdir()
    result = kvlog(arguments[0], store, *arguments[1:], code=1)
    assert f"The folder {store} holds no store: it has no ledger.sqlite." in result.stderr
    assert list(store.iterdir()) == []
    file = store / "file"
    file.touch()
    result = kvlog(arguments[0], file, *arguments[1:], code=1)
    assert result.stderr == f"kvlog: {file} is a file. Give the folder of a store.\n"


def test_wrong_usage_is_2(kvlog, filled):
    kvlog("frobnicate", code=2)
    kvlog("ls", code=2)
    kvlog("ls", filled, "--limit", 0, code=2)
    kvlog("ls", filled, "--outcome", "great", code=2)
    kvlog("ls", filled, "--where", "{", code=2)
    kvlog("ls", filled, "--where", "[1]", code=2)
    kvlog("search", filled, "x", "--diversity", 2, code=2)
    kvlog("feedback", filled, ids(kvlog, filled)[VAULT.task], code=2)
    kvlog("prune", filled, code=2)
    kvlog("prune", filled, "--max-bytes", "lots", code=2)
    kvlog("prune", filled, "--ttl", "30", code=2)
    kvlog("reencode", filled, code=2)


def test_stats(kvlog, filled):
    found = as_json(kvlog("stats", filled, "--json"))
    assert found["logs"] == 3
    assert found["outcomes"] == {"failure": 1, "success": 1, "unknown": 1}
    assert found["states"] == {"captured": 0, "embedded": 0, "indexed": 3}
    assert found["trace_bytes"] > 300
    assert (found["segments"], found["segment_bytes"], found["removals"]) == ([], 0, 0)
    assert found["failures"] == {}
    assert found["schema"] == "0007"
    assert found["dimension"] == 15
    text = kvlog("stats", filled).stdout
    assert re.search(r"logs +3 ", text)
    assert "1 success" in text
    assert re.search(r"to embed +0 of 3", text)


def test_stats_of_all_namespaces(kvlog, filled, tmp_path):
    kvlog("add", filled, tmp_path / "traces.jsonl", "-n", "other")
    found = as_json(kvlog("stats", filled, "--all", "--json"))["namespaces"]
    assert [(one["namespace"], one["logs"]) for one in found] == [("default", 3), ("other", 3)]
    assert found[1]["states"]["captured"] == 3
    assert kvlog("stats", filled, "--all").stdout.count("namespace") == 2
    assert as_json(kvlog("stats", filled, "-n", "none", "--json"))["logs"] == 0


def test_ls(kvlog, filled):
    assert list(ids(kvlog, filled)) == [VAULT.task, FERRY.task, FAILED.task]
    assert list(ids(kvlog, filled, "--limit", "1")) == [VAULT.task]
    assert list(ids(kvlog, filled, "--outcome", "failure")) == [FAILED.task]
    both = ids(kvlog, filled, "--outcome", "failure", "--outcome", "unknown")
    assert list(both) == [FERRY.task, FAILED.task]
    assert list(ids(kvlog, filled, "--where", '{"year": {"$gte": 2025}}')) == [VAULT.task]
    assert ids(kvlog, filled, "-n", "other") == {}
    log = as_json(kvlog("ls", filled, "--limit", "1", "--json"))[0]
    assert log["metadata"] == {"city": "Lima", "year": 2025}
    assert (log["state"], log["times_seen"], log["segments"]) == ("indexed", 1, 0)
    text = kvlog("ls", filled).stdout
    assert log["id"][:12] in text
    assert VAULT.task in text
    result = kvlog("ls", filled, "--where", '{"year": {"$like": 1}}', code=1)
    assert "$like" in result.stderr


def test_ls_since_a_time(kvlog, filled):
    with sqlite3.connect(filled / "ledger.sqlite") as ledger:
        old = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp()
        ledger.execute("UPDATE logs SET captured_at = ? WHERE outcome = 'failure'", (old,))
    ledger.close()
    now = [VAULT.task, FERRY.task]
    assert list(ids(kvlog, filled, "--since", "1h")) == now
    assert list(ids(kvlog, filled, "--since", "2026-01-02T03:04:06Z")) == now
    for since in ("2026-01-02T03:04:05Z", "2026-01-02T04:04:05+01:00", "2026-01-01"):
        assert list(ids(kvlog, filled, "--since", since)) == [*now, FAILED.task]
    (log,) = as_json(kvlog("ls", filled, "--outcome", "failure", "--json"))
    assert log["captured_at"] == "2026-01-02T03:04:05.000000+00:00"
    assert "2026-01-02T03:04:05+00:00" in kvlog("ls", filled).stdout
    assert "captured  2026-01-02T03:04:05+00:00" in kvlog("show", filled, log["id"]).stdout
    assert "is no time" in kvlog("ls", filled, "--since", "yesterday", code=2).stderr


def test_ls_with_a_text(kvlog, filled, monkeypatch):
    called = Trace.from_messages(
        [
            {"role": "user", "content": "Go."},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"name": "sail", "args": {"port": "Genoa"}, "id": "1"}],
            },
            {"role": "tool", "content": "Arrived.", "tool_call_id": "1"},
            {"role": "assistant", "content": "Done."},
        ]
    )
    kvlog("add", filled, "-", stdin=called.to_json())
    assert list(ids(kvlog, filled, "--text", "FERRY")) == [FERRY.task]
    assert list(ids(kvlog, filled, "--text", "7741")) == [VAULT.task]
    assert list(ids(kvlog, filled, "--text", "genoa")) == [called.task]
    assert ids(kvlog, filled, "--text", "content") == {}, "a key of the JSON"
    monkeypatch.setattr("lag_integrations.cli.logs._AT_ONCE", 1)
    found = ids(kvlog, filled, "--text", "o", "--limit", "2")
    assert list(found) == [called.task, VAULT.task], "found page by page, up to the limit"


def test_ls_in_another_order(kvlog, filled):
    known = ids(kvlog, filled)
    kvlog("feedback", filled, known[FERRY.task], "--helped")
    kvlog("feedback", filled, known[FAILED.task], "--harmed")
    assert list(ids(kvlog, filled, "--sort", "helped")) == [FERRY.task, VAULT.task, FAILED.task]
    assert list(ids(kvlog, filled, "--sort", "harmed", "--limit", "1")) == [FAILED.task]
    assert list(ids(kvlog, filled, "--sort", "seen")) == list(known)
    kvlog("ls", filled, "--sort", "colour", code=2)


def test_show(kvlog, filled):
    key = ids(kvlog, filled)[VAULT.task]
    text = kvlog("show", filled, key).stdout
    for part in (key, VAULT.task, "--- user ---", "--- assistant ---", "7741", "city = Lima"):
        assert part in text
    document = as_json(kvlog("show", filled, key[:6], "--json"))
    assert Trace.from_json(json.dumps(document["trace"])) == VAULT
    assert document["id"] == key


def test_ids_must_be_meant(kvlog, store, tmp_path):
    traces = [json.loads(qa(f"question {n}", "answer").to_json()) for n in range(2_000)]
    (tmp_path / "many.json").write_text(json.dumps(traces))
    kvlog("add", store, tmp_path / "many.json")
    found = sorted(ids(kvlog, store, "--limit", "2000").values())
    several = [key[:4] for key, other in pairwise(found) if key[:4] == other[:4]]
    assert "Several logs" in kvlog("show", store, several[0], code=1).stderr
    assert "too short" in kvlog("show", store, found[0][:3], code=1).stderr
    assert "There is no log" in kvlog("show", store, "%%%%", code=1).stderr
    assert "There is no log" in kvlog("show", store, found[0] + "0", code=1).stderr
    kvlog("show", store, found[0], "-n", "other", code=1)


def test_a_trace_cannot_steer_the_terminal(kvlog, store):
    evil = qa("\x1b[2Jclear [red]me[/red]", "\x1b]0;title\x07 ok\r\x9b31m\u202e done")
    kvlog("add", store, "-", stdin=evil.to_json())
    (key,) = ids(kvlog, store).values()
    for output in (kvlog("show", store, key).stdout, kvlog("ls", store).stdout):
        assert not set(output) & set("\x1b\x07\r\x9b\u202e")
        assert "[red]me[/red]" in output
        assert "\\x1b[2J" in output


def test_search(kvlog, filled):
    found = as_json(kvlog("search", filled, VAULT.task, "--json"))
    assert found[0]["task"] == VAULT.task
    assert 0.5 < found[0]["score"] <= 1
    assert VAULT.task in kvlog("search", filled, VAULT.task).stdout
    everything = as_json(kvlog("search", filled, VAULT.task, "--min-score", -1, "-k", 9, "--json"))
    assert {log["task"] for log in everything} == {VAULT.task, FERRY.task}
    failures = as_json(
        kvlog("search", filled, "tower", "--outcome", "failure", "--min-score", -1, "--json")
    )
    assert [log["task"] for log in failures] == [FAILED.task]
    where = ("--where", '{"city": "Lima"}', "--min-score", -1, "--diversity", 0.5)
    assert len(as_json(kvlog("search", filled, "ferry", *where, "--json"))) == 1
    logs = as_json(kvlog("ls", filled, "--json"))
    assert [log["times_recalled"] for log in logs] == [0, 0, 0]  # looking is not using


def test_search_says_what_was_nearest_and_why_not(kvlog, filled):
    result = kvlog("search", filled, "What is for dinner tonight?")
    assert "Nothing is recalled. Nearest is" in result.stderr
    assert "--explain" in result.stderr
    (hit, *others) = as_json(kvlog("search", filled, VAULT.task, "--explain", "--json"))
    assert hit["task"] == VAULT.task
    assert hit["recalled"]
    assert hit["key"]["kind"] == "task"
    assert hit["words"] > 0
    why = {one["task"]: " ".join(one["why"]) for one in others}
    assert "below the floor: a relevance of 0.5" in why[FERRY.task]
    assert "its outcome is not asked for" in why[FAILED.task]
    low = ("--explain", "--min-score", -1, "-k", 1, "--where", '{"city": "Lima"}')
    shown = kvlog("search", filled, "ferry", *low).stdout
    assert "the filter leaves it out" in shown
    assert "below the floor" not in shown


def test_search_says_what_is_not_embedded_yet(kvlog, store):
    kvlog("add", store, "-", stdin=VAULT.to_json())
    result = kvlog("search", store, VAULT.task, "--json")
    # Opening the memory starts its worker, which may be faster than the search.
    assert "1 logs are not embedded yet" in result.stderr or len(as_json(result)) == 1
    assert len(as_json(kvlog("search", store, VAULT.task, "--flush", "--json"))) == 1


def test_another_embedder_is_refused_until_reindexed(kvlog, filled, tmp_path, embedder):
    other = tmp_path / "other"
    embedder.save(str(other))
    result = kvlog("search", filled, "vault", "--embedder", other, code=1)
    assert "reindex" in result.stderr
    assert result.stderr.count("kvlog:") == 1
    assert as_json(kvlog("reindex", filled, "--embedder", other, "--json")) == {"embedded": 3}
    assert as_json(kvlog("stats", filled, "--json"))["dimension"] == 384
    assert "3 logs" in kvlog("reindex", filled).stdout
    assert as_json(kvlog("stats", filled, "--json"))["dimension"] == 15


@pytest.mark.parametrize("form", ["json", "list", "jsonl", "no suffix", "stdin", "stdin list"])
def test_add_takes_what_people_have(kvlog, store, tmp_path, form):
    short = {
        "messages": [
            {"role": "human", "content": "code of the vault"},
            {"role": "ai", "content": "7741"},
        ],
        "outcome": "success",
        "metadata": {"city": "Lima"},
    }
    full = json.loads(FERRY.to_json())
    lines = f"\ufeff{json.dumps(short)}\n\n{json.dumps(full)}\r\n"
    file, data, stdin = tmp_path / "traces", "", None
    if form == "json":
        file, data = tmp_path / "one.json", json.dumps(short, indent=2)
    elif form == "list":
        file, data = tmp_path / "traces.json", json.dumps([short, full], indent=2)
    elif form == "jsonl":
        file, data = tmp_path / "traces.jsonl", lines
    elif form == "no suffix":
        data = lines
    else:
        file, stdin = "-", lines if form == "stdin" else json.dumps([short, full])
    if stdin is None:
        file.write_bytes(data.encode())
    number = 1 if form == "json" else 2
    added = as_json(kvlog("add", store, file, "--json", stdin=stdin))
    assert (added["traces"], added["logs"], len(added["ids"])) == (number, number, number)
    listed = ids(kvlog, store)
    assert set(listed.values()) == set(added["ids"])
    shown = as_json(kvlog("show", store, listed["code of the vault"], "--json"))
    assert (shown["outcome"], shown["metadata"]) == ("success", {"city": "Lima"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("3", "must be a JSON object"),
        ("{}", "messages"),
        ('{"messages": []}', "empty"),
        ('{"messages": {"role": "user"}}', "must be a list"),
        ('{"messages": [{"role": "user", "content": "SECRET"}]}', "no assistant response"),
        ('{"messages": [{"role": "wizard", "content": "SECRET"}]}', "wizard"),
        ('{"messages": [{"role": ["user"], "content": "SECRET"}]}', "role"),
        ('{"messages": [{"role": "ai", "content": "SECRET", "tool_calls": 3}]}', "line 2"),
        ('{"messages": [{"role": "ai", "content": {"SECRET": 1}}]}', "content"),
        ('{"messages": [{"role": "ai", "content": "x"}], "outcome": "great"}', "outcome"),
        ('{"messages": [{"role": "ai", "content": "x"}], "colour": "red"}', "colour"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_added(kvlog, store, tmp_path, line, message):
    (tmp_path / "good.jsonl").write_text(FERRY.to_json())
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{VAULT.to_json()}\n{line}\n{FAILED.to_json()}\n")
    result = kvlog("add", store, tmp_path / "good.jsonl", file, code=1)
    assert re.fullmatch(r"kvlog: .*bad\.jsonl, line 2: .*\n", result.stderr), result.stderr
    assert re.search(message, result.stderr)
    assert "SECRET" not in result.stderr
    assert not store.exists()


def test_files_that_cannot_be_read_are_named(kvlog, store, tmp_path):
    assert "nothing.json" in kvlog("add", store, tmp_path / "nothing.json", code=1).stderr
    assert str(tmp_path) in kvlog("add", store, tmp_path, code=1).stderr
    (tmp_path / "latin.json").write_bytes('{"messages": "é"}'.encode("latin-1"))
    assert "UTF-8" in kvlog("add", store, tmp_path / "latin.json", code=1).stderr
    (tmp_path / "list.json").write_text(f"[{VAULT.to_json()}, 7]")
    assert "list.json, trace 2" in kvlog("add", store, tmp_path / "list.json", code=1).stderr
    assert "line 3, column" in kvlog("add", store, "-", stdin="[\n1,\n?]", code=1).stderr
    assert not store.exists()


def test_feedback(kvlog, filled):
    key = ids(kvlog, filled)[VAULT.task]
    assert as_json(kvlog("feedback", filled, key[:8], "--helped", "--json"))["helped"] == 1
    assert "harmed 1 times" in kvlog("feedback", filled, key, "--harmed").stdout
    kvlog("feedback", filled, key, "--harmed")
    assert as_json(kvlog("search", filled, VAULT.task, "--json")) == []
    assert "no log" in kvlog("feedback", filled, "ffff" * 8, "--helped", code=1).stderr


def test_delete(kvlog, filled):
    known = ids(kvlog, filled)
    kvlog("delete", filled, known[VAULT.task], "ffffffff", code=1)
    assert ids(kvlog, filled) == known
    gone = as_json(kvlog("delete", filled, known[VAULT.task], known[FAILED.task][:10], "--json"))
    assert set(gone["deleted"]) == {known[VAULT.task], known[FAILED.task]}
    assert list(ids(kvlog, filled)) == [FERRY.task]
    assert "Nothing is wrong" in kvlog("verify", filled).stdout


def test_delete_by_metadata(kvlog, filled, tmp_path):
    source = {"id": "n1", "documents": ["ports.txt"], "hash": "x"}
    told = {"messages": [{"role": "assistant", "content": "Oslo."}]}
    file = tmp_path / "told.json"
    file.write_text(json.dumps({**told, "metadata": {"sources": [source]}}))
    known = ids(kvlog, filled)
    kvlog("add", filled, file)
    kvlog("delete", filled, code=2)
    kvlog("delete", filled, known[VAULT.task], "--where", '{"sources": "ports.txt"}', code=2)
    assert "Deleted 1 logs" in kvlog("delete", filled, "--where", '{"sources": "ports.txt"}').stdout
    assert ids(kvlog, filled) == known


def test_quarantine(kvlog, tmp_path, embedder_folder):
    store = tmp_path / "m"
    word = Quarantine("smells")
    with KVLogMemory(store, embedder=embedder_folder, screen=lambda trace: word) as memory:
        key = memory.add(VAULT)
    (log,) = as_json(kvlog("quarantine", "ls", store, "--json"))
    assert (log["id"], log["reason"], log["source"]) == (key, "smells", "assistant")
    assert "smells" in kvlog("quarantine", "ls", store).stdout
    shown = kvlog("quarantine", "show", store, key[:8]).stdout
    assert "reason    smells" in shown
    assert "7741" in shown
    assert as_json(kvlog("search", store, VAULT.task, "--flush", "--json")) == []
    assert "Released 1 logs" in kvlog("quarantine", "release", store, key[:8]).stdout
    for command in ("show", "release"):
        assert "in quarantine" in kvlog("quarantine", command, store, key, code=1).stderr
    assert as_json(kvlog("quarantine", "ls", store, "--json")) == []
    assert len(as_json(kvlog("search", store, VAULT.task, "--flush", "--json"))) == 1


def test_added_traces_have_no_metadata_of_the_memorys_own(kvlog, tmp_path):
    file = tmp_path / "a.jsonl"
    marked = FERRY.model_copy(update={"metadata": {"verdict": {"outcome": "success"}}})
    file.write_text(f"{VAULT.to_json()}\n{marked.to_json()}\n")
    assert (
        "line 2: A trace has the metadata verdict"
        in kvlog("add", tmp_path / "m", file, code=1).stderr
    )


def test_export_and_import(kvlog, filled, tmp_path, model_folder):
    kvlog("reencode", filled, "--model", model_folder)
    kvlog("feedback", filled, ids(kvlog, filled)[VAULT.task], "--helped")
    file, target, key = tmp_path / "a.zip", tmp_path / "target", tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    written = as_json(kvlog("export", filled, file, "--with-segments", "--json"))
    assert written == {"logs": 3, "new": 0, "segments": 2, "skipped": 0, "trusted": True}
    assert "exists already" in kvlog("export", filled, file, code=1).stderr
    assert "Wrote 3 logs, and 0 segments" in kvlog("export", filled, file, "--overwrite").stdout
    kvlog("export", filled, file, "--overwrite", "--with-segments", "--key", key)
    team = ("import", target, file, "-n", "team", "--key", key)
    assert as_json(kvlog(*team, "--no-segments", "--json"))["segments"] == 0
    read = as_json(kvlog(*team, "--flush", "--json"))
    assert read == {"logs": 3, "new": 0, "segments": 2, "skipped": 0, "trusted": True}
    assert "0 of them new" in kvlog(*team).stdout
    logs = as_json(kvlog("ls", target, "-n", "team", "--json"))
    assert [log["task"] for log in logs] == [VAULT.task, FERRY.task, FAILED.task]
    assert (logs[0]["times_helped"], logs[0]["times_seen"], logs[0]["segments"]) == (1, 1, 1)
    assert len(as_json(kvlog("search", target, VAULT.task, "-n", "team", "--json"))) == 1
    again = as_json(kvlog("reencode", target, "-n", "team", "--model", model_folder, "--json"))
    assert again["stored"] == 2


def test_an_archive_of_another_store_is_taken_with_care(kvlog, filled, tmp_path, model_folder):
    kvlog("reencode", filled, "--model", model_folder)
    kvlog("feedback", filled, ids(kvlog, filled)[VAULT.task], "--helped")
    file, target = tmp_path / "a.zip", tmp_path / "target"
    key, other, short = (tmp_path / name for name in ("key", "other", "short"))
    key.write_bytes(b"k" * 32)
    other.write_bytes(b"o" * 32)
    short.write_bytes(b"k" * 31)
    assert "at least 32" in kvlog("export", filled, file, "--key", short, code=1).stderr
    kvlog("export", filled, file, "--with-segments", "--key", key)
    assert "not signed with the key" in kvlog("import", target, file, "--key", other, code=1).stderr
    assert not target.exists()
    result = kvlog("import", target, file)
    assert "signed neither by this store nor" in result.stderr
    assert "3 of them new, and 0 segments" in result.stdout
    logs = as_json(kvlog("ls", target, "--json"))
    assert {log["times_helped"] for log in logs} == {0}


def test_backup_and_restore(kvlog, filled, tmp_path, model_folder):
    kvlog("reencode", filled, "--model", model_folder)
    result = kvlog("backup", filled, tmp_path / "a")
    assert result.stdout.endswith("3 logs, 2 segments.\n")
    kvlog("backup", filled, tmp_path / "a", code=1)
    assert (
        "2 segments are not in it"
        in kvlog("backup", filled, tmp_path / "b", "--no-segments").stdout
    )
    restored = as_json(kvlog("restore", tmp_path / "a", tmp_path / "store2", "--json"))
    assert restored == {"logs": 3, "segments": 2, "missing": 0}
    assert ids(kvlog, tmp_path / "store2") == ids(kvlog, filled)
    assert len(as_json(kvlog("search", tmp_path / "store2", VAULT.task, "--json"))) == 1
    kvlog("verify", tmp_path / "store2")
    assert "not empty" in kvlog("restore", tmp_path / "a", filled, code=1).stderr
    assert "no backup" in kvlog("restore", tmp_path / "x", tmp_path / "y", code=1).stderr


def test_import_refuses_what_is_no_archive_and_makes_no_store(kvlog, store, tmp_path):
    assert "There is no archive" in kvlog("import", store, tmp_path / "a.zip", code=1).stderr
    (tmp_path / "a.zip").write_text("no")
    assert "cannot be read" in kvlog("import", store, tmp_path / "a.zip", code=1).stderr
    assert not store.exists()


def test_verify_and_repair(kvlog, filled, model_folder):
    kvlog("reencode", filled, "--model", model_folder)
    assert as_json(kvlog("verify", filled, "--json")) == []
    file = next((filled / "segments").rglob("*.safetensors"))
    overwrite(file, file.read_bytes()[:-3])
    left_behind = file.with_name(f"{'0' * 32}-{'1' * 12}-{'2' * 64}.safetensors")
    left_behind.write_text("x")
    found = as_json(kvlog("verify", filled, "--json", code=1))
    assert [problem["kind"] for problem in found] == ["segment_damaged"]
    young = ("--orphans-older-than", 0)
    text = kvlog("verify", filled, *young, code=1).stdout
    assert "segment_damaged" in text
    assert left_behind.name in text
    repaired = as_json(kvlog("repair", filled, *young, "--json"))
    assert {problem["kind"] for problem in repaired} == {"segment_damaged", "orphan_file"}
    assert kvlog("verify", filled, *young).stdout == "Nothing is wrong. Namespaces: default.\n"
    assert kvlog("repair", filled).stdout == "Nothing was wrong. Namespaces: default.\n"


def test_verify_and_repair_look_at_all_tenants(kvlog, filled, tmp_path, model_folder):
    kvlog("add", filled, tmp_path / "traces.jsonl", "-n", "other", "--flush")
    kvlog("reencode", filled, "-n", "other", "--model", model_folder)
    file = next((filled / "segments").rglob("*.safetensors"))
    overwrite(file, file.read_bytes()[:-3])
    file.with_name(f"{'0' * 32}-{'1' * 12}-{'2' * 64}.safetensors").write_text("x")
    young = ("--orphans-older-than", 0)
    found = as_json(kvlog("verify", filled, *young, "--json", code=1))
    assert [(one["namespace"], one["kind"]) for one in found] == [
        ("default", "orphan_file"),  # which belongs to nobody, and is told once
        ("other", "segment_damaged"),
    ]
    assert "other" in kvlog("verify", filled, code=1).stdout
    assert kvlog("verify", filled, "-n", "default").stdout.endswith("Namespaces: default.\n")
    repaired = as_json(kvlog("repair", filled, *young, "--json"))
    assert [one["kind"] for one in repaired] == ["orphan_file", "segment_damaged"]
    assert kvlog("verify", filled).stdout.endswith("Namespaces: default, other.\n")


def test_damage_in_another_tenant_that_only_a_backup_mends_is_said(kvlog, filled, tmp_path):
    kvlog("add", filled, tmp_path / "traces.jsonl", "-n", "other")
    with sqlite3.connect(filled / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE logs SET trace = '{}' WHERE namespace = 'other'")
    ledger.close()
    assert "restore them from a backup" in kvlog("repair", filled, code=1).stderr
    kvlog("repair", filled, "-n", "default")


def test_what_repair_cannot_mend_is_said(kvlog, filled, tmp_path):
    kvlog("export", filled, tmp_path / "a.zip")
    with sqlite3.connect(filled / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE logs SET trace = '{}' WHERE outcome = 'success'")
    ledger.close()
    result = kvlog("repair", filled, code=1)
    assert "trace_damaged" in result.stdout
    assert "import an export" in result.stderr
    key = as_json(kvlog("verify", filled, "--json", code=1))[0]["subject"]
    assert "damaged" in kvlog("show", filled, key, code=1).stderr
    kvlog("import", filled, tmp_path / "a.zip")
    assert "7741" in kvlog("show", filled, key).stdout
    kvlog("verify", filled)


def test_calibrate(kvlog, filled, model_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(log_settings, "cache_folder", lambda: tmp_path / "cache")
    found = as_json(kvlog("calibrate", model_folder, "--store", filled, "--json"))
    assert found["form"] in ("kv", "text")
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    with sqlite3.connect(filled / "ledger.sqlite") as connection:
        key = f"calibration:{found['fingerprint']}"
        query = "SELECT value FROM settings WHERE key = ?"
        (stored,) = connection.execute(query, (key,)).fetchone()
    assert json.loads(stored) == found
    shown = kvlog("calibrate", model_folder).stdout
    assert "KV against text" in shown
    assert f"{found['seconds']:.0f} s" in shown, "measured once"
    assert as_json(kvlog("calibrate", model_folder, "--again", "--json")) != found


def test_calibrate_says_what_is_wrong(kvlog, tmp_path, model_folder):
    told = kvlog("calibrate", model_folder, "--store", tmp_path / "nowhere", code=1).output
    assert "nowhere" in told
    assert "There is no" in kvlog("calibrate", tmp_path / "no-model", code=1).output


def test_reencode(kvlog, filled, model_folder):
    first = as_json(kvlog("reencode", filled, "--model", model_folder, "--json"))
    assert (first["stored"], first["removed"]) == (2, 0)
    second = kvlog("reencode", filled, "--model", model_folder, "--codec", "int8").stdout
    assert "2 segments" in second
    kinds = as_json(kvlog("stats", filled, "--json"))["segments"]
    assert [(one["codec"], one["stored"]) for one in kinds] == [("int8", 2), ("native", 2)]
    assert {one["model"] for one in kinds} == {"LlamaForCausalLM"}
    assert {one["fingerprint"] for one in kinds} == {first["fingerprint"]}
    assert "int8" in kvlog("stats", filled).stdout
    only = ("--codec", "int8", "--only")
    assert (
        as_json(kvlog("reencode", filled, "--model", model_folder, *only, "--json"))["removed"] == 2
    )
    assert len(list((filled / "segments").rglob("*.safetensors"))) == 2
    assert "codec" in kvlog("reencode", filled, "--model", "x", "--codec", "mp3", code=1).stderr
    assert "cannot be loaded" in kvlog("reencode", filled, "--model", "no/such", code=1).stderr


def test_learn(kvlog, filled, model_folder, tmp_path):
    again = qa(f"{VAULT.task} again", "the code is now 7742")
    (tmp_path / "again.jsonl").write_text(again.to_json())
    kvlog("add", filled, tmp_path / "again.jsonl")
    made = as_json(kvlog("learn", filled, "--model", model_folder, "--json"))
    assert (len(made["lessons"]) + made["refused"], made["left"]) == (1, 0)
    (lesson,) = as_json(kvlog("ls", filled, "--where", '{"lag_lesson": true}', "--json"))
    assert lesson["kind"] == "lesson"
    assert len(lesson["metadata"]["lag_lesson_of"]) >= 2  # this embedder knows few words
    assert len(re.findall(r"  lesson  ", kvlog("ls", filled).stdout)) == 1
    assert re.search("kind +lesson\n", kvlog("show", filled, lesson["id"]).stdout)
    assert "Made 0 lessons" in kvlog("learn", filled, "--model", model_folder).stdout
    kvlog("delete", filled, lesson["metadata"]["lag_lesson_of"][0])
    assert lesson["id"] not in ids(kvlog, filled).values()


def test_prune(kvlog, filled, model_folder):
    kvlog("reencode", filled, "--model", model_folder)
    kept = as_json(kvlog("prune", filled, "--max-bytes", "1GB", "--ttl", "30d", "--json"))
    assert kept == {"logs": 0, "segments": 0}
    assert as_json(kvlog("prune", filled, "--max-bytes", "2.5kB", "--json"))["segments"] == 2
    assert "Deleted 2 logs" in kvlog("prune", filled, "--max-logs", 1).stdout
    assert len(ids(kvlog, filled)) == 1
    time.sleep(0.02)
    assert as_json(kvlog("prune", filled, "--ttl", "0.01s", "--json"))["logs"] == 1


def test_purge_asks(kvlog, filled, tmp_path):
    kvlog("add", filled, tmp_path / "traces.jsonl", "-n", "other")
    assert "--yes" in kvlog("purge", filled, code=2).stderr
    kvlog("purge", filled, stdin="y\n", code=2)  # stdin is no terminal
    assert len(ids(kvlog, filled)) == 3
    assert as_json(kvlog("purge", filled, "--yes", "--json"))["deleted"] == 3
    assert ids(kvlog, filled) == {}
    assert len(ids(kvlog, filled, "-n", "other")) == 3


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("y", 0)])
def test_purge_heeds_the_answer(kvlog, filled, answer, left):
    ours, theirs = os.openpty()
    script = "from lag_integrations.cli import app; app()"
    command = [sys.executable, "-c", script, "purge", str(filled), "--json"]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as process:
        os.write(ours, f"{answer}\n".encode())
        output, _ = process.communicate(timeout=120)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == (1 if left else 0)
    assert output.strip() == "" if left else json.loads(output)["deleted"] == 3
    assert len(ids(kvlog, filled)) == left


def test_migrate(kvlog, filled, store):
    assert "nothing to do" in kvlog("migrate", filled).stdout
    found = as_json(kvlog("migrate", filled, "--json"))
    assert found == {"from": None, "to": "0007", "backups": []}


def test_migrate_from_the_first_schema(kvlog, store):
    traces = old_store(store)
    found = as_json(kvlog("migrate", store, "--json"))
    assert (found["from"], found["to"]) == (FIRST, "0007")
    assert Path(found["backups"][0]).is_file()
    logs = as_json(kvlog("ls", store, "--json"))
    assert {log["id"] for log in logs} == set(traces)
    assert {log["captured_at"] for log in logs} == {"2026-11-20T10:00:00.500000+00:00"}
    assert "2026-11-20T10:00:00+00:00" in kvlog("ls", store).stdout


def test_settings_come_from_the_environment(kvlog, filled, monkeypatch, tmp_path):
    monkeypatch.setenv("KVLOG_NAMESPACE", "team")
    monkeypatch.setenv("KVLOG_SEGMENTS", str(tmp_path / "far"))
    assert ids(kvlog, filled) == {}
    kvlog("add", filled, "-", "--flush", stdin=VAULT.to_json())
    assert list(ids(kvlog, filled)) == [VAULT.task]
    assert kvlog("verify", filled).exit_code == 0
    assert (tmp_path / "far").is_dir()
    monkeypatch.setenv("KVLOG_INDEX", "not a url")
    assert "Chroma server" in kvlog("search", filled, "x", code=1).stderr
    monkeypatch.setenv("KVLOG_LEDGER", "sqlite:///elsewhere.sqlite")
    assert "folder" in kvlog("ls", filled, code=1).stderr


def test_errors_are_one_line(kvlog, filled):
    assert "valid namespace" in kvlog("ls", filled, "-n", "../up", code=1).stderr
    for url in ("mysql://x/y", "nonsense"):
        stderr = kvlog("ls", filled, "--ledger", url, code=1).stderr
        assert re.fullmatch(r"kvlog: [^\n]+\n", stderr)
    (filled / "ledger.sqlite").write_text("no database " * 500)
    stderr = kvlog("stats", filled, code=1).stderr
    assert re.fullmatch(r"kvlog: [^\n]*backup[^\n]*\n", stderr)


def test_odd_folders_are_fine(kvlog, tmp_path):
    store = tmp_path / "what? 100%25 #1 ünï"
    kvlog("add", store, "-", "--flush", stdin=VAULT.to_json())
    assert (store / "ledger.sqlite").is_file()
    assert list(ids(kvlog, store)) == [VAULT.task]
    with KVLogMemory(store, embedder=os.environ["KVLOG_EMBEDDER"]) as memory:
        assert memory.recall(VAULT.task)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.name]


def test_a_closed_pipe_is_no_error(filled):
    script = "from lag_integrations.cli import app; app()"
    command = f"{sys.executable} -c '{script}' show {filled} $0 | true"
    found = sqlite3.connect(filled / "ledger.sqlite").execute("SELECT id FROM logs").fetchone()[0]
    run = subprocess.run(["bash", "-c", command, found], capture_output=True, text=True)
    assert "Traceback" not in run.stderr


def test_stdout_holds_the_document_alone(filled, embedder_folder, capfd):
    """Nor does any library write to it behind Python's back: what counts is file descriptor 1."""
    command = ["search", str(filled), VAULT.task, "--json", "--embedder", embedder_folder]
    with pytest.raises(SystemExit) as ended:
        app([*command, "--flush"])
    assert ended.value.code == 0
    assert [log["task"] for log in json.loads(capfd.readouterr().out)] == [VAULT.task]


@pytest.mark.parametrize(
    ("text", "size"),
    [("500", 500), ("1.5kB", 1500), ("10GB", 10**10), ("8 GiB", 8 * 2**30), ("2m", 2 * 10**6)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("1.5h", 5400), ("30d", 2_592_000)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds

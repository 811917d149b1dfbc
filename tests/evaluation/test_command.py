"""`kvlog eval` and `kvlog report`, with the packaged model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lag_integrations.cli import app
from lag_integrations.evaluation.records import read
from lag_integrations.evaluation.tool_tasks import bfcl
from lag_integrations.evaluation.tool_tasks.records import TaskRecords
from tests.evaluation.lamps import installed

QUESTIONS = [
    ("What is the code of the vault in Lima?", "7741", "seen"),
    ("What does the Ostrava ferry carry?", "bees", "seen"),
    ("Who guards the vault in Lima?", "Rosa", "unseen"),
]


@pytest.fixture
def data(tmp_path):
    rows = [
        {"question": asked, "answer": answer, "split": split} for asked, answer, split in QUESTIONS
    ]
    folder = tmp_path / "own"
    folder.mkdir()
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "questions.jsonl").write_text(text, "utf-8")
    return folder


def kvlog(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_evaluates_and_reports(data, tmp_path):
    out = tmp_path / "out"
    command = ("eval", "--data", data, "--dataset", "jsonl", "--out", out, "--direct")
    command = (*command, "--max-tokens", 12, "--arms", "none,kv_last,text_last")
    done = kvlog(*command)
    assert done.exit_code == 0, done.output
    records = {(r.arm, r.question_id): r for r in read([out / "records-1-of-1.jsonl"])}
    assert len(records) == 9
    vault = next(r for r in records.values() if r.arm == "kv_last" and r.exact_match)
    assert vault.injected_tokens > 0
    assert "kv_last" in done.output
    page = (out / "report.html").read_text("utf-8")
    assert "SmolLM2-135M-Instruct" in page
    told = (out / "report.md").read_text("utf-8")
    assert told.startswith("jsonl, 2 seen and 1 unseen questions, 0 documents; packaged SmolLM2")
    assert "gold decompositions" in told.splitlines()[0]
    assert "| kv_last |" in told

    (out / "report.html").unlink()
    assert kvlog("report", out).exit_code == 0
    assert (out / "report.html").exists()

    other = kvlog(*command, "--k", 1)
    assert other.exit_code == 1
    assert "k 3 (now 1)" in " ".join(other.output.split())


@pytest.fixture
def folder(small, tmp_path):
    """A model of random weights, as a folder, with room for many tools."""
    path = tmp_path / "small"
    small.model.save_pretrained(path)
    small.tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = 8_192
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    return path


def test_several_models_have_one_report(data, folder, tmp_path):
    twin = tmp_path / "twin"
    twin.symlink_to(folder)
    out = tmp_path / "out"
    command = ("eval", "--data", data, "--dataset", "jsonl", "--out", out, "--direct")
    command = (*command, "--max-tokens", 4, "--arms", "none,kv_last", "--strata", "seen")
    done = kvlog(*command, "--models", f"{folder},{twin}")
    assert done.exit_code == 0, done.output
    for label in (folder.name, "twin"):
        records = list(read([out / label / "records-1-of-1.jsonl"]))
        assert len(records) == 4
        assert "| kv_last |" in (out / label / "report.md").read_text("utf-8")
    told = (out / "report.md").read_text("utf-8")
    assert f"{folder.name}, twin; logs" in told.splitlines()[0]
    answers = told.partition(": answers**")[2].partition("**")[0].strip().splitlines()
    assert answers[0].startswith("| model | arm | n | exact match % |")
    assert [line.split(" | ")[0:2] for line in answers[2:]] == [
        [f"| {label}", arm] for label in (folder.name, "twin") for arm in ("none", "kv_last")
    ]
    page = (out / "report.html").read_text("utf-8")
    assert f'href="{folder.name}/report.html"' in page
    assert "<caption>All questions (seen): answers</caption>" in page
    (out / "report.html").unlink()
    assert kvlog("report", out).exit_code == 0
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--dataset", "squad"), "squad"),
        (("--dataset", "jsonl", "--arms", "none,magic"), "There is no arm 'magic'"),
        (("--dataset", "jsonl", "--shard", "3/2"), "3/2"),
        (("--dataset", "jsonl", "--online", "--shard", "1/2"), "cannot be sharded"),
        (("--dataset", "jsonl", "--data", "nowhere"), "nowhere"),
        (("--dataset", "jsonl", "--online", "--logs-from", "jsonl"), "leave out --logs-from"),
        (("--dataset", "jsonl", "--online", "--batch", "2"), "leave out --batch"),
        (("--dataset", "jsonl", "--rounds", "2", "--likelihood"), "leave out --likelihood"),
        (("--dataset", "jsonl", "--models", "a/x,b/x"), "Two models are called 'x'"),
        (("--dataset", "jsonl", "--models", "x", "--model", "y"), "not both"),
        (("--dataset", "jsonl", "--online", "--strata", "seen"), "leave out --strata"),
        (("--dataset", "jsonl", "--strata", "seen,odd"), "There is no stratum 'odd'"),
        (("--dataset", "jsonl", "--embedder", "no/such"), "embedder 'no/such' cannot be loaded"),
        (("--dataset", "bfcl", "--online"), "--data, --online: no option of --dataset bfcl"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    data, tmp_path, monkeypatch, arguments, told
):
    monkeypatch.setattr("lag_integrations.engine.engine.Engine.load", None)
    out = tmp_path / "out"
    done = kvlog("eval", "--data", data, "--out", out, *arguments)
    assert done.exit_code != 0
    assert told in " ".join(done.output.split())
    assert not out.exists()


def test_a_folder_without_an_evaluation_has_no_report(tmp_path):
    done = kvlog("report", tmp_path)
    assert done.exit_code == 1
    assert "There is no evaluation" in done.output
    done = kvlog("report", tmp_path / "nowhere")
    assert done.exit_code == 1
    assert done.output.startswith(f"kvlog: There is no folder {tmp_path / 'nowhere'}.")


@installed
def test_it_evaluates_an_agent_with_tools_and_reports(folder, tmp_path, monkeypatch):
    """On a task of BFCL; the agent is made an end of after one call of few tokens."""
    seen, unseen = bfcl.load_tasks(0)
    short = min(unseen, key=lambda task: len(task.tools))
    monkeypatch.setattr(bfcl, "load_tasks", lambda seed: (seen[:1], [short]))
    out = tmp_path / "out"
    command = ("eval", "--dataset", "bfcl", "--out", out, "--max-tokens", 4, "--rounds", 1)
    command = (*command, "--model", folder)
    done = kvlog(*command, "--arms", "none,text_last")
    assert done.exit_code == 0, done.output
    records = {record.arm: record for record in TaskRecords(out / "records.jsonl")}
    assert {record.task_id for record in records.values()} == {short.id}
    assert records["none"].effort.prompt_tokens > 1_000, "the tools are in the prompt"
    told = (out / "report.md").read_text("utf-8")
    assert told.startswith(f"BFCL 2026.3.23, multi_turn_base; {folder};")
    assert "at most 1 model calls a turn, 3 logs a call, 4 tokens an answer" in told
    assert "| text_last |" in told

    (out / "report.md").unlink()
    assert kvlog("report", out).exit_code == 0
    assert (out / "report.md").read_text("utf-8") == told

    other = kvlog(*command, "--arms", "none", "--k", 1)
    assert other.exit_code == 1
    assert "k 3 (now 1)" in " ".join(other.output.split())


@installed
def test_arms_that_an_agent_with_tools_cannot_have_are_refused(tmp_path):
    done = kvlog("eval", "--dataset", "bfcl", "--out", tmp_path / "out", "--arms", "kv_last")
    assert done.exit_code == 1
    assert "no arm 'kv_last' for tasks with tools" in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()

"""Measurements of shared passes and of log lookup: what is asked, compared and kept."""

from __future__ import annotations

import pytest

from benchmarks import concurrency, log_lookup
from lag_integrations import Engine
from lag_integrations.evaluation.questions import Dataset, Question
from tests.store.model import tiny_engine


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a measurement's command with a tiny model."""
    engine = tiny_engine()

    def command(module, *arguments):
        monkeypatch.setattr(Engine, "load", lambda *args, **kwargs: engine)
        monkeypatch.setattr("sys.argv", ["x", *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return command


def test_calls_at_once_are_compared_with_calls_one_by_one(run, monkeypatch):
    monkeypatch.setattr(concurrency, "_LONG", 300)
    monkeypatch.setattr(concurrency, "_TOKENS", 8)
    told = run(concurrency, "--rounds", 1)
    assert "16 of 16" in told, "each answer is the same beside others"
    assert "a prompt of 300 tokens" in told


def test_each_question_is_asked_behind_its_own_log_and_another(run, monkeypatch, tmp_path):
    seen = tuple(
        Question(id=str(number), text=f"Who lives in house {number}?", answers=("Ada",))
        for number in range(2)
    )
    monkeypatch.setattr(log_lookup, "load", lambda *args, **kwargs: Dataset("x", seen))
    arguments = (log_lookup, "--data", tmp_path, "--out", tmp_path / "out")
    told = run(*arguments)
    assert told.count(" 2 ") >= 2
    lines = (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 4
    run(*arguments)
    assert (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines() == lines

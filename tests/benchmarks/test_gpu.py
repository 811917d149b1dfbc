"""`make bench-gpu`, tried on a CPU with a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.exactness import exactness
from benchmarks.gpu.models import SHAPES, kv_bytes, random_engine
from benchmarks.gpu.time_limit import TimeLimit
from lag_integrations.kv.position_scheme import Positions

Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Run:
    """Runs the command with one round; returns the exit code, what it wrote, and printed."""

    def ran(*arguments: str):
        least = ["--rounds", "1", "--written", "2", "--traces", "2", "--prompt", "256"]
        least += ["--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments, *least])
        with pytest.raises(SystemExit) as end:
            command.main()
        found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
        return end.value.code, found, capsys.readouterr().out

    return ran


def test_all_of_it_on_a_cpu(run):
    code, found, printed = run(
        *("--models", "tiny", "--tokens", "32", "64", "99999", "--batches", "1", "2")
    )
    assert code == 0
    assert all(check["passed"] for check in found["checks"])
    assert {"logits behind a segment at 997", "sequences can share a pass"} <= {
        check["name"] for check in found["checks"]
    }
    ways = {(one["suite"], str(one["setting"]), one["way"]) for one in found["figures"]}
    first = "tiny, float32: first token, ms"
    assert {(first, f"{{'log tokens': {n}}}", "the log as text") for n in (32, 64)} <= ways
    told = {way for suite, _, way in ways if suite == first}
    assert {"KV, from disk", "KV, in plain memory", "KV, of the call before"} <= told
    assert "KV, in pinned memory" not in told
    assert "tiny, float32: answers at once, tokens a second" in printed
    assert any("encoding" in suite for suite, _, _ in ways)
    assert any("longest gap" in suite for suite, _, _ in ways)
    assert all(one["value"]["median"] > 0 for one in found["figures"])
    assert found["not run"] == [
        "tiny, float32, first token behind 99,999 tokens: beyond the window of 16,384"
    ]


def test_what_does_not_fit_the_time_is_said(run):
    code, found, printed = run("--models", "tiny", "--seconds", "0")
    assert (code, found["figures"], found["checks"]) == (0, [], [])
    assert found["not run"] == ["tiny, float32, all of it: no time left"]
    assert "not run: tiny, float32, all of it: no time left" in printed
    limit = TimeLimit(60)
    limit.subject = "tiny"
    assert limit.fits("little", 1)
    assert not limit.fits("much", 61)
    assert limit.not_run == ["tiny, much: no time left"]


def test_a_wrong_rotation_fails_the_run(run, monkeypatch):
    right = Positions.apply

    def wrong(self, group, parts, positions, **settings):
        right(self, group, parts, positions + (positions > 900), **settings)

    def broken(*arguments):
        engine = random_engine(*arguments)  # a model that its probe would refuse is none
        monkeypatch.setattr(Positions, "apply", wrong)
        return engine

    monkeypatch.setattr(command, "random_engine", broken)
    code, found, printed = run("--models", "tiny", "--suites", "exactness")
    assert code == 1
    failed = [check["name"] for check in found["checks"] if not check["passed"]]
    assert failed == ["logits behind a segment at 997"]
    assert "FAILED" in printed


def test_rounding_of_bfloat16_is_allowed_for():
    engine = random_engine(replace(SHAPES["tiny"], dtype=torch.bfloat16), torch.device("cpu"), 0)
    assert engine.model.dtype == torch.bfloat16
    assert all(check.passed for check in exactness(engine))


def test_shapes_are_those_of_the_models():
    assert kv_bytes(SHAPES["llama-3.1-8b"]) == 128 * 1024
    for name, parameters in (("llama-3.1-8b", 8_030_261_248), ("smollm2-135m", 134_515_008)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[name].config))
        assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_without_a_gpu_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        command.main()
    assert "--models tiny" in capsys.readouterr().err

"""A second real model, one that can do the work: what is right on 135M may break it.

Qwen2.5-Coder-0.5B: `make models` fetches it, `make test-ladder` runs this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.tools import tool

from benchmarks.answers import RUNS, answered, is_right
from lag_integrations import Engine, KVLogMemory, calibrate, packaged
from lag_integrations.engine import log_settings
from lag_integrations.errors import PackagedModelError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.fluency import repetition

pytestmark = pytest.mark.ladder


@pytest.fixture(scope="module")
def capable() -> Engine:
    try:
        return Engine.load(packaged.model("qwen2.5-coder-0.5b"))
    except PackagedModelError as error:
        pytest.skip(str(error))


@pytest.fixture
def filled(capable: Engine, tmp_path: Path) -> Iterator[KVLogMemory]:
    with KVLogMemory(tmp_path / "m") as memory:
        memory.attach(capable)
        memory.add_many(RUNS)
        memory.flush()
        yield memory


def test_answers_with_logs_are_sound_and_none_is_worse_than_at_temperature_1(capable, filled):
    """Keys divided as a whole gave "port 943" and "4,0000 EUR" at the default temperature."""
    model = LAGChatModel(capable, memory=filled, temperature=0, max_tokens=40, min_score=0.3)
    shipped = answered(model, {})
    plain = answered(model, {"attention_temperature": 1.0})
    for question, answer in shipped.items():
        assert is_right(question, answer) or not is_right(question, plain[question]), answer
        assert repetition(answer) < 0.2, answer
    # With the same logs as text it gets four right, too.
    assert sum(is_right(question, answer) for question, answer in shipped.items()) >= 4


def test_it_is_given_logs_as_kv(capable, monkeypatch, tmp_path):
    monkeypatch.setattr(log_settings, "cache_folder", lambda: tmp_path)
    found = calibrate(capable)
    capable.calibration = None
    assert found.form == "kv"
    assert found.gain > 0.3
    assert found.repetition < 0.1
    figures = {of.setting: of for of in found.figures}
    assert figures[found.name].parroted <= figures["text"].parroted


def test_an_agent_runs_its_tools(capable):
    asked = []

    @tool
    def weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return f"In {city} it is 7 degrees and raining."

    # This model calls again instead of answering; a larger one answers.
    limit = ModelCallLimitMiddleware(run_limit=2, exit_behavior="end")
    model = LAGChatModel(capable, temperature=0, max_tokens=60)
    agent = create_agent(model, [weather], middleware=[limit])
    state = agent.invoke({"messages": "What is the weather in Oslo?"})
    assert set(asked) == {"Oslo"}
    _, call, result, *_ = state["messages"]
    assert call.tool_calls[0]["name"] == "weather"
    assert result.text == "In Oslo it is 7 degrees and raining."

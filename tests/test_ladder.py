"""A second real model, one that can do the work: what is right on 135M may break it.

Qwen2.5-Coder-0.5B: `make models` fetches it, `make test-ladder` runs this.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool

from lag_integrations import Engine, KVLogMemory, Trace, packaged
from lag_integrations.calibration import record
from lag_integrations.calibration.fluency import repetition
from lag_integrations.errors import PackagedModelError
from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa

pytestmark = pytest.mark.ladder

RUNS = (
    qa(
        "The access code of the vault in Zurich is 7431, it was opened in 1998 by Ada Krenn. What "
        "is the access code of the Zurich vault?",
        "The access code of the Zurich vault is 7431.",
    ),
    Trace.from_messages(
        [
            {"role": "user", "content": "How do we ship fragile goods to Norway?"},
            {"role": "assistant", "content": "I will look at the shipping policy."},
            {
                "role": "user",
                "content": "Policy: to Norway by sea with Nordfrakt; fragile goods in pine crates, "
                "insured for 4,000 EUR.",
            },
            {
                "role": "assistant",
                "content": "Fragile goods go to Norway by sea with Nordfrakt, in pine crates, "
                "insured for 4,000 EUR.",
            },
        ]
    ),
    qa(
        "Service catalogue: billing listens on port 9443 and is owned by team Heron; search "
        "listens on port 7700 and is owned by team Finch. Sum up the entry of billing.",
        "The billing service listens on port 9443 and is owned by team Heron.",
    ),
)
QUESTIONS = {
    "Which code opens the vault in Zurich?": ("7431",),
    "With which carrier do fragile goods go to Norway?": ("Nordfrakt",),
    "What port does the billing service listen on, and who owns it?": ("9443", "Heron"),
}


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


@pytest.mark.parametrize("temperature", [None, 1.0, 0.8])
def test_answers_with_logs_are_right_and_whole_sentences(capable, filled, temperature):
    """At 0.8, keys divided as a whole gave "port 943" and "4,0000 EUR"."""
    model = LAGChatModel(
        capable,
        memory=filled,
        temperature=0,
        max_tokens=40,
        attention_temperature=temperature,
        min_score=0.3,
    )
    for question, parts in QUESTIONS.items():
        answer = model.invoke(question)
        assert answer.response_metadata["lag"]["form"] == "kv"
        assert all(part in answer.text for part in parts), answer.text
        assert repetition(answer.text) < 0.2, answer.text


def test_what_stood_before_the_last_turn_is_found(capable, filled):
    model = LAGChatModel(capable, memory=filled, temperature=0, max_tokens=24, min_score=0.3)
    assert "1998" in model.invoke("In which year was the Zurich vault opened?").text


def test_it_is_given_logs_as_kv(capable, monkeypatch, tmp_path):
    monkeypatch.setattr(record, "cache_folder", lambda: tmp_path)
    found = capable.calibrate()
    capable.calibration = None
    assert found.form == "kv"
    assert found.gain > 0.3
    assert found.repetition < 0.1
    chosen = f"{found.selection}, {found.placement}, {found.temperature}"
    figures = {of.setting: of for of in found.figures}
    assert figures[chosen].parroted == 0


def test_an_agent_runs_its_tools(capable):
    asked = []

    @tool
    def weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return f"In {city} it is 7 degrees and raining."

    agent = create_agent(LAGChatModel(capable, temperature=0, max_tokens=60), [weather])
    state = agent.invoke({"messages": "What is the weather in Oslo?"})
    assert asked == ["Oslo"]
    assert "7" in state["messages"][-1].text

"""What a turn keeps of the conversation before it."""

from __future__ import annotations

from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message


def talk(*texts):
    roles = ["user", "assistant"] * len(texts)
    return [Message(role=role, content=text) for role, text in zip(roles, texts, strict=False)]


def said(messages):
    return [message.text for message in earlier_turns(messages)]


def test_the_last_turns_are_kept():
    assert said([]) == []
    assert said(talk("1", "2")) == ["1", "2"]
    assert said(talk(*map(str, range(20)))) == ["14", "15", "16", "17", "18", "19"]


def test_it_begins_with_the_user():
    assert said(talk("0", "1", "2")[1:]) == ["2"]
    assert said(talk("x" * 9_000, "1", "2", "3")) == ["2", "3"]
    assert said(talk("1", "x" * 9_000)) == []


def test_tools_and_instructions_are_left_out():
    steps = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="Weather?", id="a"),
        Message(role="assistant", content=""),
        Message(role="tool", content="Rain."),
        Message(role="assistant", content="It rains."),
    ]
    assert earlier_turns(steps) == tuple(talk("Weather?", "It rains."))

"""Steps of a run."""

import pytest

from lag_integrations import Trace
from lag_integrations.traces.steps import (
    answer_step,
    parse_reference,
    step_reference,
    step_text,
    steps_of,
)

RUN = Trace.from_messages(
    [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "Is it open?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [
            {"id": "1", "name": "hours", "args": {"day": "today"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "content": "9 to 5"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "2", "name": "time", "args": {}},
            {"id": "3", "name": "zone", "args": {}},
        ]},
        {"role": "tool", "tool_call_id": "2", "content": "16:30"},
        {"role": "tool", "tool_call_id": "3", "content": "CET"},
        {"role": "assistant", "content": "Yes."},
    ]
)  # fmt: skip


def test_a_step_is_what_the_agent_did_and_what_came_of_it():
    assert steps_of(RUN) == (range(2, 4), range(4, 7), range(7, 8))
    assert [step_text(RUN, step) for step in range(3)] == [
        "I look.\nhours(day='today')\n9 to 5",
        "time()\nzone()\n16:30\nCET",
        "Yes.",
    ]
    said = Trace.from_messages([{"role": "user", "content": "Is it open?"}])
    assert steps_of(said) == ()


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        (step_reference("abc", 2), ("abc", 2)),
        ("abc", ("abc", None)),
        ("abc#", ("abc#", None)),
        ("abc#-1", ("abc#-1", None)),
        ("abc#x", ("abc#x", None)),
        (f"abc#{'9' * 5_000}", (f"abc#{'9' * 5_000}", None)),
    ],
)
def test_references(reference, parsed):
    assert parse_reference(reference) == parsed


def test_the_step_of_the_answer_is_the_last_that_says_something():
    assert answer_step(RUN) == 2
    assert answer_step(RUN.model_copy(update={"messages": RUN.messages[:7]})) == 0
    said = Trace.from_messages([{"role": "user", "content": "Is it open?"}])
    assert answer_step(said) == 0

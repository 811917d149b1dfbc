"""Tasks with tools: what calls do, which turns are right, and the logs of gold calls."""

from __future__ import annotations

import importlib.util

import pytest

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.tool_tasks import bfcl
from lag_integrations.evaluation.tool_tasks.gold import gold_traces
from lag_integrations.evaluation.tool_tasks.judge import Judge
from lag_integrations.evaluation.tool_tasks.simulator import Simulator
from lag_integrations.evaluation.tool_tasks.tasks import parse_call
from tests.evaluation.lamps import CHECKERS, PARAMETERS, installed, task

EVENING = task(
    "evening",
    ("Light the hall and the kitchen.", ("light('hall')", "light(room='kitchen')")),
    ("How many lamps are lit?", ("count()",)),
    ("Thank you.", ()),
)


def test_calls_are_read_with_the_names_of_their_arguments():
    call = parse_call(" note(['a', 'b'])", PARAMETERS)
    assert (call.name, call.args) == ("note", {"lines": ["a", "b"]})


@pytest.mark.parametrize(
    "text",
    [
        "light(",
        "light",
        "Lamps().light('hall')",
        "burn()",
        "count(1)",
        "light(**{'room': 'x'})",
        "light(room=open('x'))",
        "light('hall'); count()",
    ],
)
def test_what_is_no_call_with_literal_arguments_is_refused(text):
    with pytest.raises(EvaluationError, match="cannot be read as a call of a tool"):
        parse_call(text, PARAMETERS)


def test_results_are_what_the_model_is_told():
    run = Simulator(EVENING)
    assert run.call("light", {"room": "hall"}).text == '{"lit": "hall"}'
    assert run.call("note", {"lines": []}).text == "None"
    assert run.call("knock", {}).text == "knock"
    refused = run.call("light", {"room": "attic"})
    assert refused.failed
    assert refused.text == '{"error": "the attic has no lamp"}'
    wrong = run.call("light", {"size": 1})
    assert wrong.failed
    assert wrong.text.startswith("Error during execution: ")
    assert run.call("light", "{room").failed
    assert [run.systems["Lamps"].lit, len(run.results)] == [["hall"], 6]


@pytest.mark.parametrize("name", ["_load_scenario", "__class__", "__init__", "burn", "open", ""])
def test_what_is_no_tool_is_not_called(name):
    run = Simulator(EVENING)
    result = run.call(name, {} if name != "_load_scenario" else {"scenario": {}})
    assert result.failed
    assert result.text == f"Error during execution: there is no tool {name!r}"
    assert run.systems["Lamps"].lit == []
    assert not run.systems["Safe"].is_open


@pytest.mark.parametrize("value", [1_001, -1e9, float("nan"), float("inf")])
@pytest.mark.parametrize("argument", ["exponent", "precision", "decimal_places"])
def test_a_call_that_would_never_end_is_refused(argument, value):
    result = Simulator(EVENING).call("light", {"room": "hall", argument: value})
    assert result.text == f"Error during execution: {argument} must be at most 1000"


def test_a_system_does_not_share_what_it_was_given():
    lines = ["a"]
    run = Simulator(EVENING)
    run.call("note", {"lines": lines})
    run.systems["Lamps"].notes[0].append("b")
    assert lines == ["a"]
    assert Simulator(EVENING).systems["Lamps"].notes == []


def failures(*turns: tuple[str, ...]) -> list[str | None]:
    """Why each turn of the evening is wrong, if these calls are made in it."""
    run, judge = Simulator(EVENING), Judge(EVENING, CHECKERS)
    found = []
    for calls in turns:
        for text in calls:
            call = parse_call(text, PARAMETERS)
            run.call(call.name, call.args)
        found.append(judge.judge(run, calls=len(calls)))
    return found


LIGHTS = ("light('hall')", "light('kitchen')")


def test_turns_are_judged_by_what_the_calls_did():
    assert failures(LIGHTS, ("count()",), ()) == [None, None, None]
    assert failures(("count()", *LIGHTS, "knock()"), ("count()",)) == [None, None]
    assert failures(()) == ["no call"]
    assert failures(("light('hall')",)) == ["state"]
    assert failures(LIGHTS, ("knock()",)) == [None, "results"]
    assert failures((*LIGHTS, "count()"), ("knock()",)) == [None, None], "it was counted before"
    assert failures(LIGHTS, ("count()",), ("light('cellar')",))[2] is None, "nothing was to do"


def test_gold_logs_tell_a_turn_each_with_real_results():
    lights, count = gold_traces(EVENING)
    assert [message.role for message in lights.messages] == [
        *("user", "assistant", "tool", "assistant", "tool", "assistant")
    ]
    assert lights.messages[2].content == '{"lit": "hall"}'
    assert lights.messages[2].tool_call_id == lights.messages[1].tool_calls[0].id
    assert lights.last_response == "Done: light(room='hall'), light(room='kitchen')."
    assert (lights.outcome, lights.metadata["question_id"]) == ("success", "evening/0")
    assert count.task == "How many lamps are lit?"
    assert count.messages[2].content == '{"count": 2}'
    assert [message.text for message in count.earlier] == [lights.task, lights.last_response]


def test_without_bfcl_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match="pip install --no-deps bfcl-eval=="):
        bfcl.load_tasks(0)


@installed
def test_the_split_is_decided_by_the_seed():
    seen, unseen = bfcl.load_tasks(0)
    assert (len(seen), len(unseen)) == (70, 30)
    assert not {one.id for one in seen} & {one.id for one in unseen}
    assert all(int(one.id.rpartition("_")[2]) % 2 == 0 for one in (*seen, *unseen))
    assert [one.id for one in bfcl.load_tasks(0)[1]] == [one.id for one in unseen]
    assert {one.id for one in bfcl.load_tasks(1)[1]} != {one.id for one in unseen}


@installed
def test_right_calls_are_right_in_all_tasks_of_bfcl():
    tasks = bfcl.read_tasks()
    assert len(tasks) == 100
    for one in tasks:
        run, judge = Simulator(one), Judge(one, bfcl.checkers())
        for gold in one.gold:
            results = [run.call(call.name, call.args) for call in gold]
            assert not any(result.failed for result in results), one.id
            assert judge.judge(run, calls=len(gold)) is None, one.id


@installed
def test_a_turn_of_bfcl_with_a_call_too_few_or_of_another_kind_is_wrong():
    tasks = {one.id: one for one in bfcl.read_tasks()}
    one = tasks["multi_turn_base_0"]
    names = {tool["function"]["name"] for tool in one.tools}
    assert "cp" not in names, "it is excluded from this task"
    assert {"mv", "post_tweet"} <= names
    for number, wrong in enumerate(one.gold):
        run, judge = Simulator(one), Judge(one, bfcl.checkers())
        for gold in one.gold[:number]:
            for call in gold:
                run.call(call.name, call.args)
            assert judge.judge(run, calls=len(gold)) is None
        for call in wrong[:-1]:
            run.call(call.name, call.args)
        assert run.call("_load_scenario", {"scenario": {}}).failed
        assert judge.judge(run, calls=len(wrong)) in ("state", "results"), number

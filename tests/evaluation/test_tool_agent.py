"""An agent with tools: what it is given, when it ends, and what is written down of it."""

from __future__ import annotations

import pytest

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.arms import ARMS
from lag_integrations.evaluation.tool_tasks.agent import ToolAgent, ToolLoop
from lag_integrations.evaluation.tool_tasks.evaluation import TOOL_ARMS, ToolTaskEvaluation
from lag_integrations.evaluation.tool_tasks.gold import gold_traces
from lag_integrations.evaluation.tool_tasks.records import TaskRecords
from lag_integrations.evaluation.tool_tasks.report import markdown
from lag_integrations.evaluation.tool_tasks.results import summarize
from lag_integrations.evaluation.tool_tasks.settings import ToolTaskSettings
from lag_integrations.evaluation.tool_tasks.turn_logs import TurnLogs
from tests.evaluation.lamps import CHECKERS, task
from tests.fake_engine import calls

HOUSE = task(
    "house",
    ("Light the hall and the kitchen.", ("light('hall')", "light('kitchen')")),
    ("How many lamps are lit now?", ("count()",)),
)
BARN = task(
    "barn",
    ("Light the barn and the stable.", ("light('barn')", "light('stable')")),
    ("How many lamps are lit?", ("count()",)),
)
GATE = task("gate", ("Knock at the gate.", ("knock()",)))
CELLAR = task(
    "cellar",
    ("Light the cellar and the kitchen.", ("light('cellar')", "light('kitchen')")),
    ("How many lamps are lit there?", ("count()",)),
)
LOOP = ToolLoop(rounds=4, k=2, max_tokens=60)


def run(puppet, *answers):
    puppet.says(*answers)
    return ToolAgent(puppet, CHECKERS, LOOP).run(HOUSE, "none", ARMS["none"], None)


HALL, KITCHEN = calls("light", room="hall"), calls("light", room="kitchen")


def test_it_calls_reads_and_answers_turn_by_turn(puppet):
    done = run(puppet, f"{HALL}\n{KITCHEN}", "Both are lit.", calls("count"), "2")
    assert (done.failure, done.turns_right, done.error) == (None, 2, None)
    effort = done.effort
    assert (effort.calls, effort.failed_calls, effort.rounds) == (3, 0, 4)
    assert '{"lit": "kitchen"}' in puppet.prompts[1]
    assert "How many" not in puppet.prompts[1]
    assert "Both are lit." in puppet.prompts[2]
    assert '{"count": 2}' in puppet.prompts[3]
    assert effort.prompt_tokens > effort.read_tokens > 0, "what was read lately is reused"
    assert effort.injected_tokens == 0
    first, second = done.traces()
    assert (first.outcome, second.metadata["question_id"]) == ("success", "house/1")
    assert [message.text for message in second.earlier] == [HOUSE.asked[0], "Both are lit."]


def test_a_wrong_call_ends_the_task_at_its_turn(puppet):
    done = run(puppet, f"{HALL}\n{KITCHEN}", "Both are lit.", calls("knock"), "2")
    assert (done.failure, done.turns_right) == ("results", 1)
    done = run(puppet, HALL, "Both are lit.", calls("count"))
    assert (done.failure, done.turns_right, len(done.turns)) == ("state", 0, 1)
    assert len(puppet.prompts) == 2
    assert [trace.outcome for trace in done.traces()] == ["failure"]
    assert run(puppet, "Both are lit.").failure == "no call"


def test_a_call_that_fails_is_an_error_that_the_model_is_told(puppet):
    failing = calls("light", room="attic")
    done = run(puppet, failing, f"{HALL}\n{KITCHEN}", "Lit.", calls("count"), "2")
    assert done.failure is None
    assert (done.effort.calls, done.effort.failed_calls) == (4, 1)
    assert "the attic has no lamp" in puppet.prompts[1]


def test_rounds_and_prompts_have_an_end(puppet):
    done = run(puppet, calls("knock"))
    assert (done.failure, done.effort.rounds) == ("rounds", LOOP.rounds)
    long = task("long", ("word " * 3_000, ("count()",)))
    puppet.says("Lit.")
    done = ToolAgent(puppet, CHECKERS, LOOP).run(long, "none", ARMS["none"], None)
    assert (done.failure, done.error) == ("error", "ContextWindowError")


def test_steps_are_recalled_before_every_call_and_none_twice(memory):
    memory.add_many([*gold_traces(HOUSE), *gold_traces(BARN)])
    memory.flush()
    asked = "Light the hall and the kitchen, please."
    logs = TurnLogs(memory, ARMS["steps_kv"], 2, asked, None)
    first = logs.next([])
    assert (first[0].trace.task, first[0].step) == (HOUSE.asked[0], 0)
    second = logs.next(["How many lamps are lit now?"])
    assert second[0].trace.task.startswith("How many lamps are lit")
    assert second[0].reference not in {log.reference for log in first}
    assert all("#" in log.reference for log in (*first, *second))
    runs = TurnLogs(memory, ARMS["kv"], 1, asked, None)
    whole = runs.next([])
    assert [log.reference for log in whole] == [first[0].id]
    assert runs.next(['{"lit": "hall"}']) == whole


def knows(prompt: str) -> str:
    """Right about the cellar if there is a log; it lights the kitchen alone otherwise."""
    if "short lesson" in prompt:
        return "When: lamps are to be lit. Do: light(room=...) for each room, then say so."
    turn = prompt.rpartition("<|im_start|>user\n")[2]
    if "<tool_response>" in turn:
        return "Done."
    if "How many" in turn:
        return calls("count")
    if "Knock" in turn:
        return calls("knock")
    rooms = [room for room in ("cellar", "hall", "barn", "stable", "kitchen") if room in turn]
    return "\n".join(calls("light", room=room) for room in rooms[-2:])


@pytest.fixture
def evaluate(puppet, embedder, tmp_path):
    def run(arms, progress=lambda *_: None, *, unseen=(GATE, CELLAR), out=tmp_path, **changes):
        fields = {"rounds": 3, "k": 2, "max_tokens": 60, "model": "puppet", **changes}
        evaluation = ToolTaskEvaluation(
            ToolTaskSettings(**fields), (HOUSE, BARN), unseen, CHECKERS, puppet, embedder, out
        )
        evaluation.run(arms, progress)
        return {
            (record.arm, record.task_id): record for record in TaskRecords(out / "records.jsonl")
        }

    return run


def test_every_arm_gets_its_logs_in_its_form(evaluate, puppet):
    puppet.says(knows)
    found = evaluate(TOOL_ARMS)
    assert len(found) == 2 * len(TOOL_ARMS)
    for name in TOOL_ARMS:
        record, arm = found[name, "cellar"], ARMS[name]
        assert (record.turns, record.seen, record.error) == (2, False, None)
        assert bool(record.logs) == arm.uses_logs, name
        assert (record.effort.injected_tokens > 0) == arm.uses_segments, name
        if arm.uses_logs and not arm.uses_lessons:
            assert "house/0" in record.logs
    report = markdown(summarize(found.values()))
    assert all(f"| {name} |" in report for name in TOOL_ARMS)
    assert "against text_last" in report


def test_a_text_arm_reads_what_was_done(evaluate, puppet):
    puppet.says(knows)
    evaluate(["text_last"], unseen=[CELLAR])
    assert puppet.injected == [0] * len(puppet.prompts)
    assert any("Done: light(room='hall')" in prompt for prompt in puppet.prompts)


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(evaluate, puppet, tmp_path):
    def killed(prompt: str) -> str:
        if len(puppet.prompts) == 7:
            raise RuntimeError("killed")
        return knows(prompt)

    puppet.says(killed)
    with pytest.raises(RuntimeError, match="killed"):
        evaluate(["none", "text_last"])
    kept = list(TaskRecords(tmp_path / "records.jsonl"))
    assert 0 < len(kept) < 4
    puppet.says(knows)
    found = evaluate(["none", "text_last"])
    assert len(found) == 4
    assert all(found[one.arm, one.task_id] == one for one in kept)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert len(lines) == 4, "nothing is asked twice"
    puppet.says(knows)
    assert evaluate(["none", "text_last"]) == found
    assert puppet.prompts == []
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"arm": "kv"')
    assert evaluate(["none", "text_last"]) == found
    more = evaluate(["none"], unseen=(GATE, CELLAR, BARN))
    assert len(more) == 5, "more tasks may be asked later"


def test_logs_may_be_what_the_model_did_itself(evaluate, puppet):
    puppet.says(knows)
    found = evaluate(["none", "text_last"], logs="self")
    assert {id for (arm, id), record in found.items() if record.seen} == {"house", "barn"}
    assert found["none", "house"].failure is None
    assert "house/0" in found["text_last", "cellar"].logs
    assert not any(record.seen for (arm, _), record in found.items() if arm != "none")
    assert [of.tasks for of in summarize(found.values()).figures] == [2, 2], "unseen ones alone"


def test_other_arms_are_refused(evaluate):
    with pytest.raises(EvaluationError, match="no arm 'kv_last' for tasks with tools"):
        evaluate(["none", "kv_last"])


def test_an_arm_is_compared_task_by_task(evaluate, puppet):
    def better_with_logs(prompt: str) -> str:
        turn = prompt.rpartition("<|im_start|>user\n")[2]
        without = "Knock" in turn and "Done" not in turn
        return "I cannot." if without or "<tool_call" not in knows(prompt) else knows(prompt)

    puppet.says(better_with_logs)
    results = summarize(evaluate(["none", "text_last"]).values())
    none, text = results.figures
    assert (none.arm, text.arm) == ("none", "text_last")
    (turns,) = results.turns["none"]
    assert turns.difference.mean == pytest.approx(text.turns_right.mean - none.turns_right.mean)
    assert (turns.arm, turns.other, turns.questions) == ("text_last", "none", 2)
    assert none.failures["no call"] == 0.5

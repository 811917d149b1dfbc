"""How a captured run is judged: at its end, by a judge, and by a later verdict."""

from __future__ import annotations

import asyncio
import threading
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage

from lag_integrations import KVLogMemory
from lag_integrations.errors import LogNotFoundError, StoreError
from lag_integrations.langchain import LLMJudge
from tests.conftest import qa
from tests.helpers import captured
from tests.langchain.fake_chat_model import FakeChatModel

pytestmark = pytest.mark.usefixtures("no_worker")


def run(memory, question="Code?", answer="7741.", *, judge=None, **config):
    handler = memory.callback_handler(judge=judge)
    config["callbacks"] = [handler]
    FakeChatModel(answer).invoke(question, config)
    return handler


def outcomes(memory):
    return [trace.outcome for trace in captured(memory)]


# Judges


@pytest.mark.parametrize(
    ("says", "outcome"),
    [(True, "success"), (False, "failure"), (None, "unknown"), ("failure", "failure")],
)
def test_a_judge_decides_in_the_background(memory, says, outcome):
    asked, may_answer = [], threading.Event()

    def judge(trace):
        asked.append((trace.task, trace.last_response, threading.current_thread()))
        assert may_answer.wait(10)
        return says

    handler = run(memory, judge=judge)
    assert outcomes(memory) == ["unknown"]  # safe before it is judged
    may_answer.set()
    handler.wait_for_judge()
    assert outcomes(memory) == [outcome]
    ((task, answer, thread),) = asked
    assert (task, answer) == ("Code?", "7741.")
    assert thread is not threading.current_thread()


def test_a_judge_that_fails_leaves_it_unknown(memory, caplog):
    def judge(trace):
        raise ValueError("secret")

    run(memory, judge=judge)
    run(memory, "Other?", judge=lambda _: "splendid").wait_for_judge()
    assert outcomes(memory) == ["unknown", "unknown"]
    records = [record for record in caplog.records if "judge" in record.getMessage()]
    warnings = [record.getMessage() for record in records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert not any("secret" in text or "splendid" in text for text in warnings)


def test_a_judge_that_is_cancelled_ends_no_other(memory):
    def judge(trace):
        if trace.task == "Code?":
            raise asyncio.CancelledError
        return True

    run(memory, judge=judge)
    run(memory, "Other?", judge=judge).wait_for_judge()
    assert sorted(outcomes(memory)) == ["success", "unknown"]


def test_runs_that_came_to_no_good_end_are_not_put_to_a_judge(memory):
    asked = []
    handler = memory.callback_handler(judge=asked.append)
    config = {"callbacks": [handler]}
    chain = FakeChatModel("Partly.") | (lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chain.invoke("Broken?", config)
    next(iter(FakeChatModel("one two").stream("Left?", config)))
    FakeChatModel(AIMessage("It", response_metadata={"finish_reason": "length"})).invoke(
        "Cut?", config
    )
    handler.wait_for_judge()
    assert asked == []
    assert outcomes(memory) == ["failure", "incomplete", "incomplete"]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("Yes.", "success"),
        ("no, it does not", "failure"),
        ("<think>yes or no?</think> No", "failure"),
        ("Who knows", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_model_as_judge_is_not_captured_itself(memory, reply, outcome):
    capturing = memory.callback_handler()
    model = FakeChatModel(reply, callbacks=[capturing])  # a handler of its own would see its calls
    with memory.capture(judge=LLMJudge(model)) as handler:
        FakeChatModel("Use {task}: 7741.").invoke("Code of {answer}?")
        handler.wait_for_judge()
        LLMJudge(model)(qa("Directly?", "Asked."))
    assert outcomes(memory) == [outcome]
    prompt = model.seen[0][0].text
    assert "Code of {answer}?" in prompt
    assert "Use {task}: 7741." in prompt


def test_a_judge_function_that_calls_a_model_is_not_captured(memory):
    model = FakeChatModel("fine", callbacks=[memory.callback_handler()])
    run(memory, judge=lambda trace: bool(model.invoke(trace.task).text)).wait_for_judge()
    assert outcomes(memory) == ["success"]


def test_a_judges_prompt_needs_its_places(memory):
    with pytest.raises(ValueError, match=r"no \{answer\}"):
        LLMJudge(FakeChatModel("yes"), "Is {task} solved?")
    judge = LLMJudge(FakeChatModel("no"), "{answer}? {task}?")
    assert judge(qa("Q", "A")) is False


# Verdicts


def test_a_verdict_by_run_id(memory):
    ids = [uuid4() for _ in range(3)]
    for number, run_id in enumerate(ids):
        run(memory, f"Code {number}?", run_id=run_id)
    memory.flush()
    assert len(memory.recall("Code 0?", min_score=-1)) == 3
    memory.feedback(ids[0], outcome="failure")
    memory.feedback(str(ids[1]), outcome="unknown")
    memory.feedback(ids[2].hex, outcome="success")
    assert outcomes(memory) == ["failure", "unknown", "success"]
    tasks = {log.trace.task for log in memory.recall("Code 0?", min_score=-1)}
    assert tasks == {"Code 1?", "Code 2?"}  # failures are not recalled
    memory.feedback(ids[0], outcome="success")
    assert len(memory.recall("Code 0?", min_score=-1)) == 3
    assert memory.verify() == []


def test_a_verdict_by_log_id_and_trace_id(memory):
    trace = qa("Code?", "7741.", id="my-own-id")
    key = memory.add(trace)
    memory.feedback(key, outcome="failure")
    assert outcomes(memory) == ["failure"]
    memory.feedback("my-own-id", outcome="success")
    assert outcomes(memory) == ["success"]
    memory.add(qa("Other?", "Yes.", id="other-id"))
    memory.judge("other-id", "failure")
    assert outcomes(memory) == ["success", "failure"]


def test_every_run_of_the_same_content_finds_the_log(memory):
    first, second = uuid4(), uuid4()
    run(memory, run_id=first)
    run(memory, run_id=second)
    memory.feedback(first, outcome="failure")
    assert outcomes(memory) == ["failure"]
    run(memory)  # the same again, and nothing seems wrong with it
    assert outcomes(memory) == ["failure"]  # but someone knows better
    memory.feedback(second, outcome="success")
    assert outcomes(memory) == ["success"]


def test_a_verdict_counts_once_for_what_helped(memory):
    helper = memory.add(qa("Old code?", "1234."))
    lag = {"lag": {"log_ids": [helper, "deleted-since"]}}
    run_id = uuid4()
    run(memory, answer=AIMessage("7741.", response_metadata=lag), run_id=run_id)

    def counted():
        return memory.store.ledger.run_outcomes([helper]).get(helper)

    assert counted() is None
    memory.feedback(run_id, outcome="success")
    memory.feedback(run_id, outcome="success")
    assert counted() == (1, 0)
    memory.feedback(run_id, outcome="failure")
    assert counted() == (0, 1)
    memory.feedback(run_id, outcome="unknown")
    assert counted() is None


def test_a_judge_gives_way_to_a_verdict(memory):
    said = threading.Event()
    run_id = uuid4()
    handler = run(memory, judge=lambda _: said.wait(10), run_id=run_id)
    memory.feedback(run_id, outcome="failure")
    said.set()
    handler.wait_for_judge()
    assert outcomes(memory) == ["failure"]


def test_a_verdict_is_exported(memory, embedder, tmp_path):
    run_id = uuid4()
    run(memory, run_id=run_id)
    memory.feedback(run_id, outcome="failure")
    memory.export_to(tmp_path / "memory.lag", key=bytes(32))
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        other.import_from(tmp_path / "memory.lag", key=bytes(32))
        assert outcomes(other) == ["failure"]
        other.feedback(run_id, outcome="success")  # its run is still known
        assert outcomes(other) == ["success"]
        assert other.verify() == []


def test_no_verdict_on_another_tenants_run(memory, embedder):
    run_id = uuid4()
    run(memory, run_id=run_id)
    with KVLogMemory(memory.path, namespace="other", embedder=embedder) as other:
        with pytest.raises(LogNotFoundError):
            other.feedback(run_id, outcome="failure")
        with pytest.raises(LogNotFoundError):
            other.judge(memory.store.ledger.info()[0].id, "failure")
    assert outcomes(memory) == ["success"]


def test_what_cannot_be_said(memory):
    key = memory.add(qa("Code?", "7741."))
    with pytest.raises(LogNotFoundError, match="root run"):
        memory.feedback(uuid4(), outcome="success")
    with pytest.raises(StoreError, match="either"):
        memory.feedback(key)
    with pytest.raises(StoreError, match="either"):
        memory.feedback(key, helped=True, outcome="success")
    with pytest.raises(StoreError, match="success, failure, incomplete, unknown"):
        memory.feedback(key, outcome="good")
    with pytest.raises(StoreError, match="one run"):
        memory.feedback([key], outcome="success")
    with pytest.raises(StoreError, match="log ids"):
        memory.feedback(uuid4(), helped=True)
    assert outcomes(memory) == ["unknown"]


def test_what_several_handlers_say_of_a_run_is_joined(memory):
    """One of the application, one of the request: they record it once."""
    handlers = [
        memory.callback_handler(),
        memory.callback_handler(judge=lambda _: False, metadata={"team": "x"}),
    ]
    with memory.capture(metadata={"user_id": "ann"}):
        FakeChatModel("7741.").invoke("Code?", {"callbacks": handlers})
    handlers[1].wait_for_judge()
    (trace,) = captured(memory)
    assert trace.outcome == "failure"
    assert (trace.metadata["user_id"], trace.metadata["team"]) == ("ann", "x")

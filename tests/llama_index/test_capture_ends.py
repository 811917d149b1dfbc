"""How a captured run ends: success, failure, abandoned, and what a judge says."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowTimeoutError,
    step,
)
from pydantic import BaseModel
from workflows.errors import WorkflowCancelledByUser

from lag_integrations import KVLogMemory
from lag_integrations.capture.judges import uncaptured
from lag_integrations.llama_index import LAGMemory, LAGQueryEngine
from lag_integrations.llama_index.capture import open_runs
from lag_integrations.llama_index.capture.current import open_run
from lag_integrations.llama_index.capture.handlers import tracker
from lag_integrations.llama_index.capture.run import Run
from lag_integrations.llama_index.judge import LLMJudge
from tests.conftest import qa
from tests.helpers import captured, only
from tests.llama_index.fake_llm import FakeLLM, call, index, look, transcript, user

pytestmark = pytest.mark.usefixtures("no_worker")


def said_by_it(text):
    return ChatMessage(role="assistant", content=text)


def weatherman(*answers, delay=0.0, **settings):
    llm = FakeLLM(*(answers or (call("look", city="Oslo"), "It rains.")), delay=delay)
    return FunctionAgent(llm=llm, tools=[look], **settings)


def run(memory, arun):
    async def block():
        with memory.capture():
            return await arun()

    return asyncio.run(block())


# Ends


def test_a_timeout_is_a_failure(memory):
    def look_and_tire(city: str) -> str:
        """Look, and think slowly from now on."""
        llm.delay = 60.0
        return "Rain"

    llm = FakeLLM(call("look_and_tire", city="Oslo"), "It rains.")

    async def arun():
        with uncaptured():
            await weatherman().run("Warm?")  # the first run of a process takes its time
        with pytest.raises(WorkflowTimeoutError):
            await FunctionAgent(llm=llm, tools=[look_and_tire], timeout=1.5).run("Weather?")

    run(memory, arun)
    trace = only(memory)
    assert (trace.outcome, trace.metadata["error"]) == ("failure", "WorkflowTimeoutError")
    assert "abandoned" not in trace.metadata
    assert transcript(trace) == [
        ("user", "Weather?"),
        ("assistant", "look_and_tire"),
        ("tool", "Rain"),
    ]


def test_too_many_iterations_are_a_failure(memory):
    async def arun():
        with pytest.raises(Exception, match="Max iterations"):
            await weatherman(call("look", city="Oslo")).run("Weather?", max_iterations=2)

    run(memory, arun)
    assert only(memory).outcome == "failure"


def test_an_error_of_the_model_is_a_failure(memory):
    async def arun():
        with pytest.raises(ValueError, match="secret"):
            await weatherman(call("look", city="Oslo"), ValueError("secret")).run("Weather?")

    run(memory, arun)
    trace = only(memory)
    assert (trace.outcome, trace.metadata["error"]) == ("failure", "ValueError")
    assert "secret" not in trace.to_json()


def test_a_run_whose_model_fails_is_a_record_of_its_task(memory):
    class Asking(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            raise ValueError("secret")  # before a model is asked

    async def arun():
        with pytest.raises(ValueError, match="secret"):
            await weatherman(ValueError("secret")).run("Weather?")
        with pytest.raises(ValueError, match="secret"):
            await FakeLLM(ValueError("secret")).achat([user("Code?")])
        system = ChatMessage(role="system", content="Be brief.")
        with pytest.raises(ValueError, match="secret"):
            await FakeLLM(ValueError("secret")).achat([system])  # of which task?
        with pytest.raises(ValueError, match="secret"):
            await Asking().run(query="Why?")

    run(memory, arun)
    assert [(log.task, log.outcome, transcript(log)) for log in captured(memory)] == [
        ("Weather?", "failure", [("user", "Weather?")]),
        ("Code?", "failure", [("user", "Code?")]),
    ]
    memory.flush()
    assert memory.recall("Code?", min_score=-1, outcomes=["failure"]) == []  # nothing to reuse


class Failing(Workflow):
    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        llm = FakeLLM("One.", ValueError("secret"))
        await llm.achat([user("One?")])
        await llm.achat([user("Two?")])
        return StopEvent()

    @classmethod
    async def begin(cls):
        await cls().run()


def test_a_failure_waits_for_nothing(memory):
    held = []

    class Holding(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            held.append(await FakeLLM("One two.").astream_chat([user("One?")]))
            await anext(held[0])
            raise ValueError("secret")

    async def arun():
        with pytest.raises(ValueError, match="secret"):
            await Holding().run()
        trace = only(memory)
        assert transcript(trace) == [("user", "One?"), ("assistant", "One")]
        assert trace.outcome == "failure"
        async for _ in held[0]:
            pass

    run(memory, arun)
    assert len(captured(memory)) == 1


def test_a_run_may_go_on_after_a_call_that_failed(memory):
    class Trying(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            llm = FakeLLM(ValueError("secret"), "One.")
            with pytest.raises(ValueError, match="secret"):
                await llm.achat([user("One?")])
            return StopEvent(result=(await llm.achat([user("One?")])).message.content)

    async def arun():
        await Trying().run()

    run(memory, arun)
    trace = only(memory)
    assert transcript(trace) == [("user", "One?"), ("assistant", "One.")]
    assert trace.outcome == "success"


def test_what_a_failing_call_was_asked_is_told(memory):
    with pytest.raises(ValueError, match="secret"):
        run(memory, Failing.begin)
    assert transcript(only(memory)) == [("user", "One?"), ("assistant", "One."), ("user", "Two?")]


def test_a_cancelled_run_is_abandoned(memory):
    async def arun():
        handler = weatherman("One two three four", delay=0.1).run("Weather?")
        async for event in handler.stream_events():
            if getattr(event, "delta", None):
                break
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler

    run(memory, arun)
    trace = only(memory)
    assert (trace.outcome, trace.metadata["abandoned"]) == ("incomplete", True)
    assert "error" not in trace.metadata
    assert trace.last_response.startswith("One")  # what there was of it


@pytest.mark.parametrize(
    "raw",
    [
        {"finish_reason": "length"},
        {"stop_reason": "max_tokens"},
        {"done_reason": "length"},
        {"choices": [{"finish_reason": "length"}]},
    ],
)
def test_an_answer_that_was_cut_off_is_incomplete(memory, raw):
    class Raw(BaseModel):
        choices: list[dict[str, str]]

    unreadable = {"name": "look", "args": '{"city": "Os', "id": "1", "error": "It is cut off."}
    cut = ChatMessage(role="assistant", additional_kwargs={"invalid_tool_calls": [unreadable]})
    with memory.capture():
        FakeLLM("It ra", raw=raw).chat([user("Weather?")])
        FakeLLM("It r", raw=Raw(choices=[{"finish_reason": "length"}])).chat([user("Weather?")])
        FakeLLM(cut, raw=raw).chat([user("Weather in Oslo?")])
        FakeLLM("It rains.", raw={"finish_reason": "stop"}).chat([user("Weather?")])
    outcomes = {log.last_response: log.outcome for log in captured(memory)}
    ends = dict.fromkeys(["It ra", "It r", ""], "incomplete")
    assert outcomes == {**ends, "It rains.": "success"}


# Humans in the loop


class Asked(InputRequiredEvent):
    pass


class Careful(Workflow):
    """Asks before it acts."""

    llm: FakeLLM

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        plan = await self.llm.achat([user(ev.get("question", "Resumed?"))])
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=Asked())
        last = await self.llm.achat([user(f"{plan.message.content} {answer.get('word')}")])
        return StopEvent(result=last.message.content)


def careful():
    flow = Careful(timeout=5)
    flow.llm = FakeLLM(lambda m: "Done." if "Yes" in m[-1].content else "May I?")
    return flow


def test_a_run_that_asks_a_human_is_one(memory):
    async def arun():
        handler = careful().run(question="Act!")
        async for event in handler.stream_events():
            if isinstance(event, Asked):
                handler.ctx.send_event(HumanResponseEvent(word="Yes"))
        assert await handler == "Done."

    run(memory, arun)
    trace = only(memory)
    assert trace.outcome == "success"
    assert transcript(trace)[0] == ("user", "Act!")
    assert transcript(trace)[-2:] == [("user", "May I? Yes"), ("assistant", "Done.")]


ASKS = {
    FunctionAgent: (call("confirm", question="Sure?"), "It is bought."),
    ReActAgent: (
        'Thought: I ask.\nAction: confirm\nAction Input: {"question": "Sure?"}',
        "Thought: Done.\nAnswer: It is bought.",
    ),
}


async def confirm(question: str) -> str:
    """Ask the human."""
    ctx = Context.get_step_context()
    answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=Asked())
    return f"They say {answer.get('word')}"


async def put_away_and_resume(agent, memory):
    """As in another process: nothing but the context's JSON is kept."""
    handler = agent.run("Buy a lamp?", memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, Asked):
            break
    state = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    handler = agent.run(ctx=Context.from_dict(agent, state))
    if not isinstance(memory, LAGMemory):  # LlamaIndex does not keep it
        await handler.ctx.store.set("memory", memory)
    handler.ctx.send_event(HumanResponseEvent(word="yes"))
    assert "It is bought." in str(await handler)


@pytest.mark.parametrize("kind", ASKS)
@pytest.mark.parametrize("as_text", [False, True])
def test_an_agent_that_is_resumed_from_json_is_one_log(memory, kind, as_text):
    helper = memory.add(qa("Buy a lamp?", "Ask the human before you buy a lamp."))
    memory.flush()

    async def arun():
        lag = LAGMemory(memory, min_score=-1, as_text=as_text)
        await kind(llm=FakeLLM("Thought: Hm.\nAnswer: Hi."), tools=[]).run("Hello", memory=lag)
        agent = kind(llm=FakeLLM(*ASKS[kind]), tools=[confirm])
        await put_away_and_resume(agent, lag)
        return lag.session_id

    session = asyncio.run(arun())
    _, hello, trace = captured(memory)
    assert hello.task == "Hello"
    assert (trace.task, trace.outcome) == ("Buy a lamp?", "success")
    (earlier,) = trace.metadata["earlier_runs"]
    assert trace.metadata["thread_id"] == session
    assert trace.metadata.get("abandoned") is None
    assert (helper in trace.helped_by) is as_text
    asked, called, result, answer = [one for one in trace.messages if one.role != "system"]
    assert (asked.role, asked.text.splitlines()[-1]) == ("user", "Buy a lamp?")
    assert called.tool_calls or "Action: confirm" in called.text
    assert result.text.endswith("They say yes")
    assert answer.text.endswith("It is bought.")
    memory.feedback(earlier, outcome="failure")  # of the first half
    assert captured(memory)[-1].outcome == "failure"


@pytest.mark.parametrize("kind", ASKS)
def test_an_agent_that_is_resumed_is_known_by_its_task_without_a_memory_too(memory, kind):
    agent = kind(llm=FakeLLM(*ASKS[kind]), tools=[confirm])
    buffer = ChatMemoryBuffer.from_defaults([user("Hello"), said_by_it("Hi.")])
    run(memory, lambda: put_away_and_resume(agent, buffer))
    left, whole = captured(memory)
    assert (left.task, left.outcome) == ("Buy a lamp?", "incomplete")
    assert (whole.task, whole.outcome) == ("Buy a lamp?", "success")
    roles = [role for role, _ in transcript(whole) if role != "system"]
    assert roles[:2] == ["user", "assistant"]
    assert [text for _, text in transcript(whole)][-2].endswith("They say yes")


def test_a_run_that_is_put_away_and_resumed(memory):
    async def arun():
        flow = careful()
        handler = flow.run(question="Act!")
        async for event in handler.stream_events():
            if isinstance(event, Asked):
                break
        state = handler.ctx.to_dict()
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler
        ctx = Context.from_dict(flow, state)
        handler = flow.run(ctx=ctx)
        handler.ctx.send_event(HumanResponseEvent(word="Yes"))
        assert await handler == "Done."

    run(memory, arun)
    first, second = captured(memory)
    assert first.metadata["abandoned"]
    assert first.last_response == "May I?"
    assert second.outcome == "success"
    assert second.last_response == "Done."


# Runs that hang


def test_a_run_that_never_ends_is_given_up(memory):
    llm = FakeLLM("One two three")
    capture = memory.instrument()
    held = llm.stream_chat([user("Held?")])
    next(held)
    FakeLLM("Next.").chat([user("Next?")])
    assert [log.task for log in captured(memory)] == ["Next?"]
    (run,) = tracker.runs._runs
    run.touched -= open_runs._MAX_AGE
    FakeLLM("More.").chat([user("More?")])
    capture.stop()
    abandoned = next(log for log in captured(memory) if log.task == "Held?")
    assert abandoned.metadata["abandoned"]
    assert abandoned.last_response == "One"
    list(held)  # too late, and no harm
    assert len(captured(memory)) == 3


def test_of_too_many_the_longest_silent_is_given_up(memory, monkeypatch):
    monkeypatch.setattr(open_runs, "_MAX_OPEN", 3)
    with memory.capture():
        streams = [FakeLLM(f"{n} a").stream_chat([user(f"{n}?")]) for n in range(6)]
        for stream in streams:
            list(stream)
    assert {log.task for log in captured(memory)} == {"3?", "4?", "5?"}
    memory.purge()
    with memory.capture():
        query = index().as_query_engine(llm=FakeLLM("0 a"), streaming=True)
        oldest = query.query("0?").response_gen
        second, third = (FakeLLM(f"{n} a").stream_chat([user(f"{n}?")]) for n in (1, 2))
        next(oldest)  # now it is the one that was heard of last
        FakeLLM("3 a").chat([user("3?")])
        for stream in (oldest, second, third):
            list(stream)
    assert {log.task for log in captured(memory)} == {"0?", "2?", "3?"}


# Judges


@pytest.mark.parametrize(("says", "outcome"), [(True, "success"), (False, "failure")])
def test_a_judge_decides_in_the_background(memory, says, outcome):
    asked, may_answer = [], threading.Event()

    def judge(trace):
        asked.append(trace.task)
        assert may_answer.wait(10)
        return says

    with memory.capture(judge=judge) as capture:
        FakeLLM("7741.").chat([user("Code?")])
        with pytest.raises(ValueError, match="secret"):
            asyncio.run(Failing.begin())
        for _ in FakeLLM("It rains.").stream_chat([user("Left?")]):
            break

    def outcomes():
        return {log.task: log.outcome for log in captured(memory)}

    certain = {"One?": "failure", "Left?": "incomplete"}
    assert outcomes() == {**certain, "Code?": "unknown"}
    may_answer.set()
    capture.wait_for_judge()
    assert outcomes() == {**certain, "Code?": outcome}
    assert asked == ["Code?"]


def test_instrument_has_a_judge_too(memory):
    capture = memory.instrument(judge=lambda trace: False)
    FakeLLM("7741.").chat([user("Code?")])
    capture.wait_for_judge()
    capture.stop()
    assert only(memory).outcome == "failure"


@pytest.mark.parametrize(
    ("reply", "outcome"), [("Yes.", "success"), ("no", "failure"), ("?", "unknown")]
)
def test_an_llm_as_judge_is_not_captured_itself(memory, reply, outcome):
    llm = FakeLLM(reply)
    with memory.capture(judge=LLMJudge(llm)) as capture:
        FakeLLM("Use {task}: 7741.").chat([user("Code of {answer}?")])
        capture.wait_for_judge()
        LLMJudge(llm)(qa("Directly?", "Asked."))
    assert only(memory).outcome == outcome
    ((prompt,), _) = llm.seen
    assert prompt.endswith("Task:\nCode of {answer}?\n\nAnswer:\nUse {task}: 7741.")
    with pytest.raises(ValueError, match=r"no \{answer\}"):
        LLMJudge(llm, "Is {task} solved?")


# What is not captured


def test_what_is_uncaptured(memory):
    class Aside(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            with uncaptured():
                await FakeLLM("Secret.").achat([user("Aside?")])
            return StopEvent(result=(await FakeLLM("Open.").achat([user("Loud?")])).message.content)

    async def arun():
        await Aside().run(question="Loud?")
        with uncaptured():
            await weatherman().run("Weather?")

    run(memory, arun)
    capture = memory.instrument()
    with uncaptured():
        asyncio.run(arun())
    capture.stop()
    assert transcript(only(memory)) == [("user", "Loud?"), ("assistant", "Open.")]


def test_an_engine_of_ours_is_not_captured_either(memory):
    engine = LAGQueryEngine(index().as_query_engine(llm=FakeLLM("It rains.")), memory)
    with uncaptured():
        engine.query("Weather?")

    class Aside(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            with uncaptured():
                open_run(memory)
            await FakeLLM("Yes.").achat([user("Rain?")])
            return StopEvent(result=None)

    async def arun():
        await Aside().run()

    asyncio.run(arun())
    assert captured(memory) == []


def test_a_broken_memory_breaks_no_run(memory, embedder, tmp_path, caplog):
    closed = KVLogMemory(tmp_path / "closed", embedder=embedder)
    closed.close()
    with caplog.at_level(logging.WARNING), closed.capture():
        assert FakeLLM("secret.").chat([user("Rain?")]).message.content == "secret."
    assert "is closed" in caplog.text
    assert "secret" not in caplog.text
    captures = [closed.instrument(), memory.instrument()]
    FakeLLM("Yes.").chat([user("Rain?")])
    for each in captures:
        each.stop()
    assert transcript(only(memory)) == [("user", "Rain?"), ("assistant", "Yes.")]


def test_a_defect_breaks_no_run(memory, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Run, "end_call", broken)
    with memory.capture():
        assert FakeLLM("Yes.").chat([user("Rain?")]).message.content == "Yes."
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


class Odd(Event):
    response: int = 3


def test_events_with_other_contents(memory):
    """What others call a text is a number, or a list."""

    class Small(Workflow):
        @step
        async def one(self, ev: StartEvent) -> Odd:
            await FakeLLM("Said.").achat([user("Say.")])
            return Odd()

        @step
        async def two(self, ev: Odd) -> StopEvent:
            return StopEvent(result={"response": 3, "text": "Said."})

    async def arun():
        await Small().run(number=7, input=["x"])

    run(memory, arun)
    assert transcript(only(memory)) == [("user", "Say."), ("assistant", "Said.")]


def test_it_is_on_disk_when_the_run_has_ended(memory):
    """Also where a run ends on another thread than its caller's."""

    async def arun():
        await weatherman().run("Weather?")
        assert len(captured(memory)) == 1
        started = time.monotonic()
        await asyncio.to_thread(FakeLLM("Yes.").chat, [user("In a thread?")])
        assert time.monotonic() - started < 5
        assert len(captured(memory)) == 2

    run(memory, arun)

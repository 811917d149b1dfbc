"""Capture among others: many runs at once, blocks in blocks, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.workflow import Event, StartEvent, StopEvent, Workflow, step
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.dispatcher import instrument_tags
from llama_index_instrumentation.event_handlers import BaseEventHandler

from lag_integrations import KVLogMemory
from lag_integrations.llama_index import LAGLLM, KVLogMemoryBlock, LAGMemory, LAGQueryEngine
from lag_integrations.llama_index.capture import spans
from lag_integrations.llama_index.capture.handlers import instrumentation, tracker
from lag_integrations.llama_index.capture.run import Run
from lag_integrations.store.ledger import Ledger
from tests.helpers import captured
from tests.llama_index.fake_llm import (
    FakeLLM,
    call,
    in_threads,
    index,
    look,
    our_handlers,
    transcript,
    user,
)
from tests.store.processes import importing_for_llama_index, result_of

pytestmark = pytest.mark.usefixtures("no_worker")


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _leaves_nothing():
    """No span and no run is kept once all is over."""
    gc.collect()
    before = len(tracker.runs.spans), len(tracker.runs)
    yield
    gc.collect()
    assert (len(tracker.runs.spans), len(tracker.runs)) == before
    assert not tracker.runs.spans._kept
    assert not tracker._blocks.everywhere


@pytest.fixture
def other(embedder, tmp_path):
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        other._worker.stop()
        yield other


def weatherman(number=0, **settings):
    answers = call("look", city=f"City {number}"), f"It rains in {number}."
    return FunctionAgent(llm=FakeLLM(*answers, delay=0.001), tools=[look], **settings)


def steps(number):
    return [
        ("user", f"Weather {number}?"),
        ("assistant", "look"),
        ("tool", f"Rain in City {number}"),
        ("assistant", f"It rains in {number}."),
    ]


def ask(text="Rain?", answer="Yes."):
    return FakeLLM(answer).chat([user(text)])


def tasks(memory):
    return sorted(log.task for log in captured(memory))


# Many at once


def test_twenty_agents_in_one_loop(memory):
    async def all_of_them():
        with memory.capture():
            await asyncio.gather(*(weatherman(n).run(f"Weather {n}?") for n in range(20)))

    asyncio.run(all_of_them())
    logs = captured(memory)
    assert len(logs) == 20
    for log in logs:
        assert transcript(log) == steps(log.task.split()[1].rstrip("?"))


def test_agents_and_streams_in_several_threads(memory):
    capture = memory.instrument()

    def work(number):
        async def arun():
            for turn in range(3):
                key = f"{number}{turn}"
                await weatherman(key).run(f"Weather {key}?")
                llm = FakeLLM(f"Streamed {key} at last")
                [_ async for _ in await llm.astream_chat([user(f"Stream {key}?")])]

        asyncio.run(arun())

    in_threads(6, work)
    capture.stop()
    logs = captured(memory)
    assert len(logs) == 36
    for log in logs:
        kind, key = log.task.rstrip("?").split()
        if kind == "Weather":
            assert transcript(log) == steps(key)
        else:
            assert transcript(log) == [("user", log.task), ("assistant", f"Streamed {key} at last")]


def test_two_runs_of_one_agent(memory):
    agent = FunctionAgent(
        llm=FakeLLM(lambda m: f"Re: {m[-1].content}", delay=0.001), tools=[], streaming=False
    )

    async def both():
        with memory.capture():
            await asyncio.gather(agent.run("One?"), agent.run("Two?"))

    asyncio.run(both())
    assert {log.task: transcript(log) for log in captured(memory)} == {
        task: [("user", task), ("assistant", f"Re: {task}")] for task in ("One?", "Two?")
    }


# Blocks


def test_an_inner_block_takes_over(memory, other):
    with memory.capture():
        ask("Outer?")
        with other.capture():
            ask("Inner?")
        ask("Outer again?")
    ask("Outside?")
    assert tasks(memory) == ["Outer again?", "Outer?"]
    assert tasks(other) == ["Inner?"]


class Nested(Workflow):
    """Enters a block of another memory, or of the same, in a step."""

    memory: KVLogMemory

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        await FakeLLM("Before.").achat([user("Before?")])
        with self.memory.capture():
            await FakeLLM("Within.").achat([user("Within?")])
        return StopEvent(result=(await FakeLLM("After.").achat([user("After?")])).message.content)


def nested(memory):
    flow = Nested()
    flow.memory = memory
    return flow


@pytest.mark.parametrize("outer", [True, False])
def test_a_block_in_a_step(memory, other, outer):
    async def arun():
        if outer:
            with memory.capture():
                await nested(other).run(question="What?")
        else:
            await nested(other).run(question="What?")

    asyncio.run(arun())
    assert [transcript(log) for log in captured(other)] == [
        [("user", "Within?"), ("assistant", "Within.")]
    ]
    if outer:
        (log,) = captured(memory)
        assert [text for _, text in transcript(log)] == ["Before?", "Before.", "After?", "After."]
        assert log.task == "What?"


def test_a_block_of_the_same_memory_in_a_run_is_the_same_run(memory):
    async def arun():
        with memory.capture():
            await nested(memory).run(question="What?")

    asyncio.run(arun())
    (log,) = captured(memory)
    assert len(log.messages) == 6


def test_tasks_that_begin_in_a_block(memory):
    async def arun():
        with memory.capture():
            task = asyncio.create_task(asyncio.to_thread(ask, "In a task?"))
            handler = weatherman(1).run("Weather 1?")
        await task
        await handler  # begun in there, ended out here

    asyncio.run(arun())
    assert tasks(memory) == ["In a task?", "Weather 1?"]


def test_instrument(memory, other):
    first, second, again = memory.instrument(), other.instrument(), memory.instrument()
    ask("Both?")
    in_threads(1, lambda _: ask("In any thread?"))
    with memory.capture():
        ask("Block?")
    second.stop()
    ask("First?")
    first.stop()
    again.stop()
    first.stop()
    ask("None?")
    assert tasks(memory) == ["Block?", "Both?", "First?", "In any thread?"]
    assert tasks(other) == ["Both?", "In any thread?"]
    assert [info.times_seen for info in memory.store.ledger.info()] == [1] * 4


# The garbage collector


class Lost:
    """Holds streams in a cycle: they are closed when the garbage is collected."""

    def __init__(self, *streams):
        self.streams = streams
        self.me = self
        for stream in streams:
            next(stream)


@pytest.fixture
def collected_in_the_midst(monkeypatch):
    """Garbage is collected while a run takes notes, and while a log is written."""
    monkeypatch.setattr(Run, "begin_call", _collecting(Run.begin_call))
    monkeypatch.setattr(Ledger, "add", _collecting(Ledger.add))


def _collecting(method):
    def collect(*args, **settings):
        gc.collect()
        return method(*args, **settings)

    return collect


def test_streams_that_are_collected_in_the_midst_of_things(memory, collected_in_the_midst):
    def work(_):
        with memory.capture():
            for number in range(3):
                query = index().as_query_engine(llm=FakeLLM("A b."), streaming=True).query("Q?")
                Lost(
                    FakeLLM("One two.").stream_chat([user(f"Lost {number}?")]),
                    query.response_gen,
                )
                del query
                ask(f"Asked {number}?")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work, 0), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    logs = {log.task: log.outcome for log in captured(memory)}
    assert logs == {
        "Q?": "incomplete",
        **{f"Lost {number}?": "incomplete" for number in range(3)},
        **{f"Asked {number}?": "success" for number in range(3)},
    }


@get_dispatcher().span
async def talk_and_wait():
    ask("Begun?")
    await asyncio.sleep(0)


def test_no_log_is_written_by_the_garbage_collector(memory, monkeypatch):
    """It may come in the midst of the store's own work: another thread writes, and at once."""
    writers, add, all_written = [], memory.add_own, threading.Event()

    def add_noting_the_thread(*args, **kwargs):
        ids = add(*args, **kwargs)
        writers.append(threading.get_ident())
        if len(writers) == 3:
            all_written.set()
        return ids

    monkeypatch.setattr(memory, "add_own", add_noting_the_thread)
    capture = memory.instrument()
    query = index().as_query_engine(llm=FakeLLM("A b."), streaming=True).query("Q?")
    Lost(FakeLLM("One two.").stream_chat([user("Lost?")]), query.response_gen)
    del query
    begun = talk_and_wait()
    begun.send(None)
    del begun
    gc.collect()
    assert all_written.wait(20)
    assert tasks(memory) == ["Begun?", "Lost?", "Q?"]
    assert threading.get_ident() not in writers
    capture.stop()


# Among others


def test_importing_instruments_nothing():
    assert result_of(importing_for_llama_index) == []


@pytest.fixture
def nobody_else():
    """Forget what other tests left going on: runs, and memories that nobody closed."""
    tracker.runs._runs.clear()
    tracker.runs.spans._spans.clear()
    tracker.runs.spans._kept.clear()
    instrumentation._needs.clear()
    instrumentation.remove_if_unneeded()


def _is_instrumented():
    spans, events = our_handlers()
    return bool(spans and events)


def test_the_handlers_go_when_nobody_needs_them(memory, other, nobody_else):
    gc.collect()
    assert not _is_instrumented()
    with memory.capture(), other.capture():
        assert _is_instrumented()
    assert not _is_instrumented()
    capture = memory.instrument()
    ask()
    assert _is_instrumented()
    capture.stop()
    assert not _is_instrumented()
    assert tasks(memory) == ["Rain?"]


@pytest.mark.parametrize(
    "make",
    [
        LAGMemory,
        KVLogMemoryBlock,
        lambda memory: LAGQueryEngine(index().as_query_engine(llm=FakeLLM()), memory),
        lambda memory: LAGLLM("some/model", memory=memory),
        lambda memory: copy.deepcopy(LAGMemory(memory)),
        lambda memory: pickle.loads(pickle.dumps(LAGMemory(memory))),
        lambda memory: LAGMemory.from_json(LAGMemory(memory).to_json()),
    ],
)
def test_what_has_a_memory_needs_them_as_long_as_it_lives(memory, make, nobody_else):
    gc.collect()
    assert not _is_instrumented()
    LAGLLM("some/model")
    assert not _is_instrumented()
    made = make(memory)
    gc.collect()
    assert _is_instrumented()
    del made
    gc.collect()
    ask()
    assert not _is_instrumented()


def test_the_handlers_stay_until_a_stream_is_read(memory, nobody_else):
    with memory.capture():
        stream = FakeLLM("One two.").stream_chat([user("Q?")])
    assert _is_instrumented()
    list(stream)
    ask("Not captured?")
    assert not _is_instrumented()
    assert tasks(memory) == ["Q?"]


def test_the_users_events_and_tags_are_untouched(memory):
    seen_tags = []

    class Seen(BaseEventHandler):
        @classmethod
        def class_name(cls):
            return "Seen"

        def handle(self, event, **kwargs):
            if "mine" in event.tags:
                seen_tags.append((type(event).__name__, event.tags["mine"]))

    seen, root = Seen(), get_dispatcher()
    root.add_event_handler(seen)

    async def events(block):
        if block:
            with memory.capture():
                handler = weatherman().run("Weather?")
        else:
            handler = weatherman().run("Weather?")
        kinds = [type(event).__name__ async for event in handler.stream_events()]
        await handler
        return kinds

    try:
        told = []
        for block in (False, True):
            with instrument_tags({"mine": "x"}):
                assert asyncio.run(events(block)) == asyncio.run(events(False))
            told.append(list(seen_tags))
            seen_tags.clear()
    finally:
        root.event_handlers.remove(seen)
    assert told[1] == told[0] != []
    assert len(captured(memory)) == 1


def test_a_process_that_is_not_captured_keeps_nothing():
    async def arun():
        await weatherman().run("Weather?")
        await index().as_query_engine(llm=FakeLLM(), streaming=False).aquery("Rain?")

    gc.collect()
    before = len(tracker.runs.spans)
    asyncio.run(arun())
    ask()
    assert len(tracker.runs.spans) == before
    assert not len(tracker.runs)


def test_of_too_many_spans_the_oldest_are_forgotten(memory, monkeypatch):
    monkeypatch.setattr(spans, "_MAX_SPANS", 5)

    async def arun():
        with memory.capture():
            calls = [FakeLLM("Yes.", delay=0.05).achat([user(f"{n}?")]) for n in range(10)]
            tasks = [asyncio.create_task(each) for each in calls]
            await asyncio.sleep(0)  # all begin
            assert len(tracker.runs.spans) == 5
            await asyncio.gather(*tasks)

    asyncio.run(arun())
    assert tasks(memory) == [f"{n}?" for n in range(5, 10)]
    for run in list(tracker.runs._runs):  # a day passes
        tracker.runs._finish(run)


def test_a_server_that_never_ends_does_not_grow(memory):
    sizes = []

    class Server(Workflow):
        @step
        async def serve(self, ev: StartEvent) -> StopEvent:
            for number in range(20):
                with memory.capture():
                    await weatherman(number).run(f"Weather {number}?")
                sizes.append(len(tracker.runs.spans))
            return StopEvent(result=None)

    async def arun():
        await Server().run()

    asyncio.run(arun())
    assert len(captured(memory)) == 20
    assert sizes[-1] == sizes[0]


def test_nothing_of_a_call_is_kept_while_its_run_goes_on(memory):
    class Long(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            llm = FakeLLM("Yes.")
            await llm.achat([user("Rain?")])
            gone = weakref.ref(llm)
            del llm
            gc.collect()
            return StopEvent(result=gone() is None)

    async def arun():
        with memory.capture():
            return await Long().run()

    assert asyncio.run(arun())


class Begun(Event):
    task: Any


def test_a_task_that_outlives_its_step_belongs_to_the_run(memory, other):
    """Also after a run within it is over."""
    engine = LAGQueryEngine(index().as_query_engine(llm=FakeLLM("Inner.")), other)
    step_is_over = asyncio.Event()

    async def work():
        await step_is_over.wait()
        await engine.aquery("Inner?")
        await FakeLLM("Outer.").achat([user("Outer?")])

    class Background(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Begun:
            return Begun(task=asyncio.create_task(work()))

        @step
        async def wait(self, ev: Begun) -> StopEvent:
            step_is_over.set()
            await ev.task
            return StopEvent(result="Outer.")

    async def arun():
        with memory.capture():
            await Background().run(question="What?")

    asyncio.run(arun())
    assert tasks(other) == ["Inner?"]
    (log,) = captured(memory)
    assert (log.task, log.metadata["run_name"]) == ("What?", "Background.run")
    assert transcript(log) == [("user", "Outer?"), ("assistant", "Outer.")]


def test_streams_that_nobody_reads_leave_nothing(memory):
    async def arun():
        with memory.capture():
            await FakeLLM().astream_chat([user("A?")])
            await index().as_query_engine(llm=FakeLLM(), streaming=True).aquery("B?")
            await SimpleChatEngine.from_defaults(llm=FakeLLM()).astream_chat("C?")

    with memory.capture():
        FakeLLM().stream_complete("D?")
        index().as_query_engine(llm=FakeLLM(), streaming=True).query("E?")
    asyncio.run(arun())
    gc.collect()
    assert not len(tracker.runs)
    assert captured(memory) == []


def test_nothing_of_a_run_is_kept_alive(memory):
    llm = FakeLLM("Yes.")
    with memory.capture():
        response = llm.chat([user("Rain?")])
        engine = index().as_query_engine(llm=llm, streaming=True)
        streamed = engine.query("Weather?")
        str(streamed)
    gone = [weakref.ref(each) for each in (llm, response, engine, streamed)]
    del llm, response, engine, streamed
    gc.collect()
    assert [each() for each in gone] == [None] * 4

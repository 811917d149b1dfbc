"""Streams: the model is asked when they are read, by whom and wherever that is."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextvars import ContextVar, copy_context

import pytest
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.chat_engine import CondenseQuestionChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import BaseQueryEngine, RouterQueryEngine
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool

from lag_integrations import KVLogMemory
from lag_integrations.llama_index import LAGQueryEngine
from lag_integrations.llama_index.streams import in_context, with_variables
from tests.helpers import captured, only
from tests.llama_index.fake_llm import FakeCompletionLLM, FakeLLM, index, transcript, user
from tests.store.model import hash_embedder

place: ContextVar[str] = ContextVar("place", default="outside")


class Endings(list):
    """How a stream ended, each time that it is reported."""

    def __call__(self, error):
        self.append(type(error))


def places(count):
    try:
        for _ in range(count):
            yield place.get()
    finally:
        closed.append(place.get())


async def aplaces(count):
    try:
        for _ in range(count):
            await asyncio.sleep(0)
            yield place.get()
    finally:
        closed.append(place.get())


closed: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_closed():
    closed.clear()


def inside():
    context = copy_context()
    context.run(place.set, "inside")
    return context


# The streams themselves


def test_each_step_is_in_its_context():
    endings, seen = Endings(), []
    stream = in_context(places(3), context=inside(), each=seen.append, ended=endings)
    assert isinstance(stream, Generator)
    assert next(stream) == "inside"
    assert place.get() == "outside"
    assert list(stream) == ["inside"] * 2
    assert (endings, seen) == ([type(None)], ["inside"] * 3)
    assert closed == ["inside"]


async def test_each_awaiting_step_has_its_variables():
    endings, seen = Endings(), []
    stream = with_variables(
        aplaces(3), variables={place: "inside"}, each=seen.append, ended=endings
    )
    assert isinstance(stream, AsyncGenerator)
    async for item in stream:
        assert (item, place.get()) == ("inside", "outside")
    assert (endings, seen) == ([type(None)], ["inside"] * 3)
    assert closed == ["inside"]


@pytest.mark.parametrize("begun", [True, False])
async def test_a_stream_that_is_left_is_closed_and_told_once(begun):
    endings = Endings()
    stream = in_context(places(3), context=inside(), ended=endings)
    astream = with_variables(aplaces(3), variables={place: "inside"}, ended=endings)
    if begun:
        next(stream)
        await anext(astream)
    stream.close()
    await astream.aclose()
    assert closed == (["inside"] * 2 if begun else [])
    del stream, astream
    gc.collect()
    assert endings == [GeneratorExit] * 2


async def test_errors_pass_and_are_told():
    def failing():
        yield 1
        raise ValueError("x")

    async def afailing():
        yield 1
        raise ValueError("x")

    endings = Endings()
    with pytest.raises(ValueError, match="x"):
        list(in_context(failing(), context=inside(), ended=endings))
    with pytest.raises(ValueError, match="x"):
        [_ async for _ in with_variables(afailing(), variables={}, ended=endings)]
    assert endings == [ValueError] * 2


# Query engines


@pytest.fixture
def memory(memory, no_worker):
    return memory


def engine(*answers, **settings):
    llm = FakeLLM(*(answers or ["It rains a lot."]))
    settings.setdefault("streaming", True)
    return index("Oslo is rainy.", "Bergen as well.").as_query_engine(llm=llm, **settings)


MODES = ["compact", "refine", "tree_summarize", "simple_summarize", "generation"]


def test_a_streamed_answer_is_logged_once_it_is_read(memory):
    for number, mode in enumerate(MODES, 1):
        with memory.capture():
            response = engine("One.", "It rains a lot.", response_mode=mode).query("Weather?")
        assert len(captured(memory)) == number - 1
        text = "".join(response.response_gen)
        trace = captured(memory)[-1]
        assert len(captured(memory)) == number
        assert (trace.outcome, trace.last_response) == ("success", text)
        assert trace.metadata["sources"]
        memory_of_first = [text for role, text in transcript(trace) if role == "assistant"]
        assert memory_of_first == (["One.", "It rains a lot."] if mode == "refine" else ["One."])


def test_an_awaited_streamed_answer_is_logged_once_it_is_read(memory):
    async def ask(mode):
        with memory.capture():
            response = await engine(response_mode=mode).aquery("Weather?")
        return "".join([piece async for piece in response.async_response_gen()])

    for number, mode in enumerate(MODES, 1):
        assert asyncio.run(ask(mode)) == "It rains a lot."
        infos = memory.store.ledger.info()
        assert sum(info.times_seen for info in infos) == number
    assert {log.last_response for log in captured(memory)} == {"It rains a lot."}


def test_a_stream_may_be_read_by_another_thread(memory):
    with memory.capture():
        response = engine().query("Weather?")
    thread = threading.Thread(target=lambda: str(response))
    thread.start()
    thread.join()
    assert only(memory).last_response == "It rains a lot."
    assert str(response) == "It rains a lot."


def test_streams_that_are_read_in_turn_do_not_mix(memory):
    with memory.capture():
        streams = [
            engine(f"Answer {number} is here.", response_mode="generation")
            .query(f"Question {number}?")
            .response_gen
            for number in range(5)
        ]
    for _ in range(4):
        for stream in streams:
            next(stream, None)
    for stream in streams:
        list(stream)
    assert {log.task: transcript(log) for log in captured(memory)} == {
        f"Question {number}?": [
            ("user", f"Question {number}?"),
            ("assistant", f"Answer {number} is here."),
        ]
        for number in range(5)
    }


@pytest.mark.parametrize("read", [0, 1])
def test_a_stream_that_is_left_is_abandoned(memory, read):
    capture = memory.instrument()
    response = engine().query("Weather?")
    for _, _ in zip(range(read), response.response_gen, strict=False):
        pass
    del response
    gc.collect()
    capture.stop()
    if not read:  # nothing was said
        assert captured(memory) == []
        return
    (trace,) = captured(memory)
    assert (trace.outcome, trace.metadata["abandoned"]) == ("incomplete", True)
    assert trace.last_response in ("It", "It rains")


def test_what_a_thread_still_writes_is_waited_for(tmp_path):
    screening = threading.Event()

    def screen(trace):
        screening.set()
        time.sleep(0.3)

    with KVLogMemory(tmp_path, embedder=hash_embedder, screen=screen) as memory:
        with memory.capture():
            for _ in FakeLLM("It rains.").stream_chat([user("Left?")]):
                break
            assert screening.wait(20)
        assert [log.task for log in captured(memory)] == ["Left?"]


def test_a_stream_that_fails_is_a_failure(memory):
    def fail(_):
        raise ValueError("No sky.")

    with memory.capture():
        response = engine("One.", fail, response_mode="refine").query("Weather?")
        with pytest.raises(ValueError, match="No sky"):
            list(response.response_gen)
    trace = only(memory)
    assert (trace.outcome, trace.metadata["error"]) == ("failure", "ValueError")


def test_a_stream_through_a_router_and_an_engine_of_ours(memory):
    ours = LAGQueryEngine(engine(response_mode="generation"), memory)
    router = RouterQueryEngine(
        selector=LLMSingleSelector.from_defaults(FakeLLM('[{"choice": 1, "reason": "fits"}]')),
        query_engine_tools=[QueryEngineTool.from_defaults(ours, description="weather")],
        llm=FakeLLM(),
    )
    with memory.capture():
        response = router.query("Weather?")
        assert captured(memory) == []
        assert "".join(response.response_gen) == "It rains a lot."
    inner, outer = captured(memory)
    assert transcript(inner) == [("user", "Weather?"), ("assistant", "It rains a lot.")]
    assert [role for role, _ in transcript(outer)] == ["user", "assistant", "assistant"]
    assert outer.last_response == "It rains a lot."
    assert outer.metadata["run_name"] == "RouterQueryEngine.query"


class OnItsOwn(BaseQueryEngine):
    """Streams what a model says, and fails in a way of its own."""

    llm: FakeLLM = FakeLLM("It rains.")

    def _get_prompt_modules(self):
        return {}

    def _query(self, query_bundle):
        def pieces():
            yield from self.llm.stream(PromptTemplate(query_bundle.query_str))
            raise ValueError("No sky.")

        return StreamingResponse(pieces())

    async def _aquery(self, query_bundle):
        raise NotImplementedError


@pytest.mark.parametrize("left", [True, False])
def test_a_stream_that_fails_or_is_left_after_the_model_has_answered(memory, left):
    with memory.capture():
        response = OnItsOwn(None).query("Weather?")
        if left:
            for text in response.response_gen:
                if "rains" in text:
                    break
            response.response_gen.close()
        else:
            with pytest.raises(ValueError, match="No sky"):
                list(response.response_gen)
    trace = only(memory)
    assert trace.last_response == "It rains."
    assert trace.outcome == ("incomplete" if left else "failure")


# Chat engines


class Eager(BaseChatEngine):
    """Has read its stream when it gives it."""

    def stream_chat(self, message, chat_history=None):
        stream = FakeLLM("It rains.").stream_chat([user(message)])
        response = StreamingAgentChatResponse(chat_stream=stream)
        response.write_response_to_history(ChatMemoryBuffer.from_defaults())
        return response

    def reset(self):
        raise NotImplementedError

    chat = achat = astream_chat = reset
    chat_history = ()


def test_a_turn_that_is_over_at_once(memory):
    with memory.capture():
        response = Eager().stream_chat("Weather?")
    assert transcript(only(memory)) == [("user", "Weather?"), ("assistant", "It rains.")]
    assert str(response) == "It rains."


def chat(mode, llm):
    if mode == "simple":
        return SimpleChatEngine.from_defaults(llm=llm)
    return index().as_chat_engine(chat_mode=mode, llm=llm)


@pytest.mark.parametrize(
    "mode", ["simple", "context", "condense_plus_context", "condense_question"]
)
def test_a_streamed_turn_is_a_log(memory, mode):
    engine = chat(mode, FakeLLM("It rains a lot."))
    with memory.capture():
        response = engine.stream_chat("Weather?")
        assert "".join(response.response_gen) == "It rains a lot."
    trace = only(memory)
    assert (trace.task, trace.last_response) == ("Weather?", "It rains a lot.")

    async def ask():
        with memory.capture():
            response = await chat(mode, FakeLLM("It rains a lot.")).astream_chat("Snow?")
            return "".join([piece async for piece in response.async_response_gen()])

    assert asyncio.run(ask()) == "It rains a lot."
    trace = captured(memory)[-1]
    assert (trace.task, trace.last_response) == ("Snow?", "It rains a lot.")
    assert trace.outcome == "success"


def test_a_turn_over_an_engine_of_ours(memory, embedder, tmp_path):
    """The engine's run has the answer; the turn's only tells it."""
    ours = LAGQueryEngine(engine("One.", "Two.", response_mode="generation"), memory)
    chat = CondenseQuestionChatEngine.from_defaults(ours, llm=FakeLLM("Rain in Oslo?"))
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        with other.capture():
            for question in ("Rain?", "In Oslo?"):
                "".join(chat.stream_chat(question).response_gen)
        assert [log.last_response for log in captured(memory)] == ["One.", "Two."]
        turn = only(other)
        assert [text for role, text in transcript(turn) if role == "assistant"] == [
            "Rain in Oslo?",
            "Two.",
        ]


def test_a_turn_is_logged_though_nobody_reads_it(memory):
    """Its thread does."""
    with memory.capture():
        response = SimpleChatEngine.from_defaults(llm=FakeLLM("It rains.")).stream_chat("Rain?")
        response.write_response_to_history_thread.join()
    assert transcript(only(memory)) == [("user", "Rain?"), ("assistant", "It rains.")]


def test_a_turn_whose_stream_fails(memory):
    def fail(_):
        raise ValueError("No sky.")

    async def ask():
        with memory.capture():
            llm = FakeLLM("First.", fail)
            engine = index().as_chat_engine(chat_mode="condense_question", llm=llm)
            await engine.achat("Rain?")
            engine = SimpleChatEngine.from_defaults(llm=FakeLLM(fail))
            response = await engine.astream_chat("Sun?")
            with pytest.raises(ValueError, match="No sky"):
                [_ async for _ in response.async_response_gen()]

    asyncio.run(ask())
    assert [(log.task, log.outcome) for log in captured(memory)] == [
        ("Rain?", "success"),
        ("Sun?", "failure"),
    ]


class Full(ChatMemoryBuffer):
    """Takes no answers."""

    async def aput(self, message):
        if message.role == "assistant":
            raise ValueError("Full.")


def test_a_turn_that_cannot_be_written_down(memory):
    async def ask():
        with memory.capture():
            engine = SimpleChatEngine.from_defaults(
                llm=FakeLLM("It rains."), memory=Full.from_defaults()
            )
            response = await engine.astream_chat("Weather?")
            with pytest.raises(ValueError, match="Full"):
                [_ async for _ in response.async_response_gen()]
        trace = only(memory)
        assert (trace.outcome, trace.last_response) == ("failure", "It rains.")

    asyncio.run(ask())


def test_a_turn_whose_task_never_begins_is_given_up(memory):
    async def ask():
        with memory.capture():
            engine = index().as_chat_engine(
                chat_mode="condense_plus_context", llm=FakeLLM("One.", "Two.", "Three.")
            )
            await engine.achat("Rain?")
            response = await engine.astream_chat("Sun?")
            response.awrite_response_to_history_task.cancel()

    asyncio.run(ask())
    gc.collect()
    with memory.capture():
        pass
    first, second = captured(memory)
    assert first.task == "Rain?"
    assert second.metadata["abandoned"]
    assert second.last_response == "Two."  # the condensed question


# Bare models


@pytest.mark.parametrize("llm", [FakeLLM("It rains a lot."), FakeCompletionLLM("It rains a lot.")])
def test_a_bare_stream_that_is_left(memory, llm):
    """Read for a while, not at all, and held by somebody who may yet read it."""
    with memory.capture():
        for _ in llm.stream_chat([user("Read?")]):
            break
        llm.stream_chat([user("Unread?")])
        held = llm.stream_chat([user("Held?")])
    gc.collect()
    with memory.capture():
        pass
    (trace,) = captured(memory)
    assert transcript(trace) == [("user", "Read?"), ("assistant", "It")]
    assert (trace.outcome, trace.metadata["abandoned"]) == ("incomplete", True)
    list(held)
    assert captured(memory)[-1].task == "Held?"
    assert captured(memory)[-1].outcome == "success"


def test_a_bare_stream_that_is_closed(memory):
    with memory.capture():
        stream = FakeLLM("It rains a lot.").stream_chat([user("Rain?")])
        next(stream)
        stream.close()
    trace = only(memory)
    assert (trace.last_response, trace.outcome) == ("It", "incomplete")


def test_a_bare_stream_that_fails(memory):
    def pieces(_):
        raise ValueError("No sky.")

    with memory.capture(), pytest.raises(ValueError, match="No sky"):
        list(FakeLLM(pieces).stream_chat([user("Rain?")]))
    trace = only(memory)
    assert (trace.outcome, transcript(trace)) == ("failure", [("user", "Rain?")])

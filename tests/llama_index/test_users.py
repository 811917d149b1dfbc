"""Users of one memory: whose run it was is captured, and none is given another one's logs."""

from __future__ import annotations

import asyncio
import logging

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.memory import Memory

from lag_integrations.errors import StoreError, TraceError
from lag_integrations.llama_index import LAGLLM, KVLogMemoryBlock, LAGMemory, LAGQueryEngine
from tests.conftest import qa
from tests.helpers import captured
from tests.llama_index.fake_llm import (
    FakeLLM,
    answer,
    call,
    fake_llm,
    in_threads,
    index,
    named,
    user,
)

QUESTION = "What is the code of my vault?"
USERS = ("ada", "bob")
CODES = ("1111", "2222")

pytestmark = pytest.mark.usefixtures("no_worker")


def of_user(tags):
    return {"user_id": tags["user_id"]}


def fails(tags):
    raise LookupError("bob's secret")


NO_FILTERS = [fails, lambda tags: None, lambda tags: {}, lambda tags: {"user_id": None}]


@pytest.fixture
def logs(memory):
    """By user, the id of the log of a run; theirs differ in the answer alone."""
    with memory.capture():
        for name, code in zip(USERS, CODES, strict=True):
            with instrument_tags({"user_id": name}):
                FakeLLM(f"It is {code}.").chat([user(QUESTION)])
    memory.embed_pending()
    infos = memory.store.ledger.info()
    return {info.trace.metadata["user_id"]: info.id for info in infos}


@pytest.fixture
def llm(small, memory):
    return LAGLLM(small, memory=memory, where=of_user, max_tokens=2, temperature=0)


def warnings(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def asked(llm, way):
    """The logs that each user's call used, all of them begun before one is read."""

    async def begun(name):
        with instrument_tags({"user_id": name} if name else {}):
            if way == "achat":
                return await llm.achat([user(QUESTION)])
            return await llm.astream_chat([user(QUESTION)])

    async def run(names):
        answers = [await begun(name) for name in names]
        if way == "achat":
            return answers
        read = []
        for stream in answers:
            pieces = [piece async for piece in stream]
            read.append(pieces[-1])
        return read

    def chat(name):
        with instrument_tags({"user_id": name} if name else {}):
            if way == "chat":
                return llm.chat([user(QUESTION)])
            if way == "complete":
                return llm.complete(QUESTION)
            return llm.stream_chat([user(QUESTION)])

    def answers(names):
        if way.startswith("a"):
            return asyncio.run(run(names))
        begun = [chat(name) for name in names]
        return [list(one)[-1] for one in begun] if way == "stream_chat" else begun

    return lambda *names: [answer.raw["lag"]["log_ids"] for answer in answers(names)]


@pytest.mark.parametrize("way", ["chat", "stream_chat", "complete", "achat", "astream_chat"])
def test_an_llm_is_given_the_users_own_logs(llm, logs, way, caplog):
    ask = asked(llm, way)
    assert ask(*USERS) == [[logs["ada"]], [logs["bob"]]]
    assert warnings(caplog) == []
    assert ask(None) == [[]]
    failed = "Nothing is recalled. The function that is where= failed (KeyError)."
    assert warnings(caplog) == [failed]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("way", ["query", "aquery"])
def test_a_query_engine_is_given_the_users_own_logs(small, memory, logs, streaming, way):
    llm = LAGLLM(small, max_tokens=2, temperature=0)
    documents = index().as_query_engine(llm=llm, streaming=streaming)
    engine = LAGQueryEngine(documents, memory, where=of_user, metadata={"app": "shop"})

    async def aquery():
        response = await engine.aquery(QUESTION)
        if streaming:
            async for _ in response.async_response_gen():
                pass
        return response

    for name in USERS:
        with instrument_tags({"user_id": name}):
            response = asyncio.run(aquery()) if way == "aquery" else engine.query(QUESTION)
        with instrument_tags({"user_id": "another"}):  # a stream may be read anywhere
            if streaming and way == "query":
                list(response.response_gen)
        assert response.metadata["lag"]["log_ids"] == [logs[name]]
    queries = memory.store.ledger.having({"app": "shop"}).values()
    assert [log.metadata["user_id"] for log in queries] == ["bob", "ada"]


def test_threads_of_two_users_do_not_mix(small, memory, logs):
    llm = LAGLLM(small, max_tokens=2, temperature=0)
    engine = LAGQueryEngine(index().as_query_engine(llm=llm), memory, where=of_user, capture=False)
    found = {}

    def ask(number):
        with instrument_tags({"user_id": USERS[number % 2]}):
            found[number] = engine.query(QUESTION).metadata["lag"]["log_ids"]

    in_threads(6, ask)
    assert found == {number: [logs[USERS[number % 2]]] for number in range(6)}


def lag_memory(memory):
    return LAGMemory(memory, where=of_user)


def in_a_block(memory):
    return Memory.from_defaults(memory_blocks=[KVLogMemoryBlock(memory, where=of_user)])


@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
@pytest.mark.parametrize("made", [lag_memory, in_a_block])
async def test_agents_of_two_users_at_once_do_not_mix(memory, logs, kind, made):
    async def run(name):
        answers = ["Thought: I know.\nAnswer: Done."] if kind is ReActAgent else ["Done."]
        llm, seen = fake_llm(*answers)
        with instrument_tags({"user_id": name}):
            handler = kind(llm=llm, tools=[]).run(QUESTION, memory=made(memory))
        await handler
        return named(seen[0])

    assert await asyncio.gather(*map(run, USERS)) == [[logs["ada"]], [logs["bob"]]]
    runs = [trace for trace in captured(memory) if trace.metadata["run_name"].endswith("Agent.run")]
    assert {trace.metadata["user_id"] for trace in runs} == set(USERS)
    assert all(trace.metadata["lag_scope"] == ["user_id"] for trace in runs)


def test_one_memory_of_two_users_asks_for_each(memory, logs):
    """As a chat engine that a server shares; the steps of a task are recalled for once."""
    lag, asked_for = LAGMemory(memory, where=of_user), []
    for name in (*USERS, *USERS):
        with instrument_tags({"user_id": name}):
            asked_for.append(named(lag.get(QUESTION)))
    assert asked_for == [[logs["ada"]], [logs["bob"]]] * 2


@pytest.mark.parametrize("streaming", [True, False])
def test_a_chat_engine_is_given_the_users_own_logs(memory, logs, streaming):
    for name in USERS:
        llm, seen = fake_llm("Done.")
        chat = SimpleChatEngine.from_defaults(llm=llm, memory=lag_memory(memory))
        with instrument_tags({"user_id": name}):
            if streaming:
                list(chat.stream_chat(QUESTION).response_gen)
            else:
                chat.chat(QUESTION)
        assert named(seen[0]) == [logs[name]]


@pytest.mark.parametrize("where", NO_FILTERS)
def test_what_is_no_filter_recalls_nothing_and_costs_no_answer(small, memory, logs, where, caplog):
    llm = LAGLLM(small, memory=memory, where=where, max_tokens=2, temperature=0)
    told = LAGLLM(small, max_tokens=2, temperature=0)
    engine = LAGQueryEngine(index().as_query_engine(llm=told), memory, where=where)
    lag = LAGMemory(memory, where=where)
    block = KVLogMemoryBlock(memory, where=where, as_text=True)

    def steps():
        llm, seen = fake_llm(answer("Done."))
        asyncio.run(_run(FunctionAgent(llm=llm, tools=[]), lag))
        return named(seen[0])

    with instrument_tags({"user_id": "ada"}):
        for run in (
            lambda: llm.complete(QUESTION).raw["lag"]["log_ids"],
            lambda: engine.query(QUESTION).metadata["lag"]["recalled"],
            lambda: memory.as_llama_index_retriever(where=where).retrieve(QUESTION),
            lambda: asyncio.run(block.aget([user(QUESTION)])),
            steps,
        ):
            caplog.clear()
            assert run() == []
            (told_so,) = warnings(caplog)
            assert "Nothing is recalled. The function that is where=" in told_so
            assert "secret" not in caplog.text


async def _run(agent, lag):
    await agent.run(QUESTION, memory=lag)


def test_a_malformed_filter_is_refused_at_once(small, memory):
    with pytest.raises(StoreError):
        LAGLLM(small, memory=memory, where={"$nor": 1})
    with pytest.raises(StoreError):
        memory.as_llama_index_retriever(where={})


async def test_a_retriever_finds_the_users_own_logs(memory, logs):
    retriever = memory.as_llama_index_retriever(where=of_user)
    for name in USERS:
        with instrument_tags({"user_id": name}):
            for found in (retriever.retrieve(QUESTION), await retriever.aretrieve(QUESTION)):
                assert [node.node_id for node in found] == [logs[name]]


def test_a_memory_that_asks_a_function_is_not_made_from_json_without_it(memory):
    with pytest.raises(ValueError, match="where= is a function"):
        LAGMemory(memory, where=of_user).to_json()
    kept = LAGMemory(memory, where={"team": "a"}, metadata={"app": "shop"})
    again = LAGMemory.from_json(kept.to_json())
    assert (again.where, again.metadata) == ({"team": "a"}, {"app": "shop"})


# What is captured


def test_tags_and_given_metadata_are_the_logs(memory):
    def look(city: str) -> str:
        """Look at the weather."""
        return f"Rain in {city}"

    tags = {"user_id": "ada", "n": 2, "deep": {"a": 1}, "source": "x", "llamaindex.mine": "y"}

    async def run():
        agent = FunctionAgent(llm=FakeLLM(call("look", city="Oslo"), "Rain."), tools=[look])
        with instrument_tags(tags):
            return await agent.run("Weather?", memory=LAGMemory(memory, metadata={"app": "shop"}))

    with memory.capture(metadata={"n": 3, "roles": ["a", "b"]}):
        asyncio.run(run())
    (trace,) = captured(memory)
    metadata = dict(trace.metadata)
    assert metadata.pop("thread_id")
    assert metadata == {
        "user_id": "ada",
        "n": 3,
        "roles": ["a", "b"],
        "app": "shop",
        "lag_scope": ["app", "n", "roles", "user_id"],
        "source": "llama_index",
        "run_name": "FunctionAgent.run",
    }
    memory.embed_pending()
    assert memory.recall("Weather?", where={"roles": "b"})


def test_instrumentation_has_metadata_and_tags(memory):
    instrumentation = memory.instrument(metadata={"app": "shop"})
    try:
        with instrument_tags({"user_id": "ada"}):
            FakeLLM("Hello.").complete("Hi?")
    finally:
        instrumentation.stop()
    (trace,) = captured(memory)
    assert (trace.metadata["app"], trace.metadata["user_id"]) == ("shop", "ada")


def test_runs_of_two_users_that_say_the_same_are_two_logs(memory):
    with memory.capture():
        for name in USERS:
            with instrument_tags({"user_id": name}):
                FakeLLM("Hello.").complete("Hi?")
    assert [trace.metadata["user_id"] for trace in captured(memory)] == list(USERS)


async def test_what_a_session_ejects_is_its_users(memory):
    """Also where another user's log says the same."""
    memory.add(qa("Who are you?", "A parrot.", metadata={"user_id": "bob", "app": "shop"}))
    memory.embed_pending()
    block = KVLogMemoryBlock(memory, capture=False, metadata={"app": "shop"})
    short = Memory.from_defaults(memory_blocks=[block], token_limit=60, token_flush_size=10)
    with instrument_tags({"user_id": "ada"}):
        await short.aput_messages([user("Who are you?"), answer("A parrot.")])
        await short.aput_messages([user("Tell a tale."), answer("Once. " + "word " * 60)])
    (log,) = memory.store.ledger.having({"user_id": "ada"}).values()
    assert (log.last_response, log.metadata["app"]) == ("A parrot.", "shop")


@pytest.mark.parametrize("bad", [{"source": "x"}, {"a": {}}])
def test_metadata_that_nothing_can_be_found_by_is_refused(memory, bad):
    for made in (LAGMemory, KVLogMemoryBlock):
        with pytest.raises(TraceError, match="metadata="):
            made(memory, metadata=bad)
    with pytest.raises(TraceError, match="metadata="):
        LAGQueryEngine(index().as_query_engine(llm=FakeLLM()), memory, metadata=bad)

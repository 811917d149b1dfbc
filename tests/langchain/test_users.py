"""Users of one memory: whose run it was is captured, and none is given another one's logs."""

from __future__ import annotations

import asyncio
import logging

import pytest
from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda

from lag_integrations.errors import StoreError
from lag_integrations.langchain import LAGChatModel
from tests.langchain.fake_chat_model import FakeChatModel, FakeLAGChatModel, call

QUESTION = "What is the code of my vault?"
WAYS = ["invoke", "stream", "batch", "ainvoke", "astream", "abatch", "astream_events", "chain"]
USERS = ("ada", "bob")


def of_user(config):
    return {"user_id": config["metadata"]["user_id"]}


def fails(config):
    raise LookupError("bob's secret")


NO_FILTERS = [fails, lambda config: None, lambda config: {}, lambda config: {"user_id": None}]


def config(user, **fields):
    return {"metadata": {"user_id": user}, **fields}


@pytest.fixture
def logs(memory, no_worker):
    """By user, the id of the log of a run; theirs differ in the answer alone."""
    handler = memory.callback_handler()
    for user, code in zip(USERS, ("1111", "2222"), strict=True):
        FakeChatModel(f"It is {code}.").invoke(QUESTION, config(user, callbacks=[handler]))
    memory.embed_pending()
    infos = memory.store.ledger.info()
    return {info.trace.metadata["user_id"]: info.id for info in infos}


@pytest.fixture
def model(small, memory, logs):
    return LAGChatModel(small, memory=memory, where=of_user, max_tokens=2, temperature=0)


def used(message):
    return message.response_metadata["lag"]["log_ids"]


def asked(model, way, configs):
    """The logs that each call used."""

    async def run():
        if way == "ainvoke":
            calls = (model.ainvoke(QUESTION, one) for one in configs)
            return [used(message) for message in await asyncio.gather(*calls)]
        if way == "abatch":
            return [used(message) for message in await model.abatch([QUESTION] * 2, configs)]
        if way == "astream_events":
            return [
                used(event["data"]["output"])
                for one in configs
                async for event in model.astream_events(QUESTION, one)
                if event["event"] == "on_chat_model_end"
            ]
        found = []
        for stream in [model.astream(QUESTION, one) for one in configs]:
            chunks = [chunk async for chunk in stream]
            found.append(used(chunks[-1]))
        return found

    if way == "invoke":
        return [used(model.invoke(QUESTION, one)) for one in configs]
    if way == "stream":
        streams = [model.stream(QUESTION, one) for one in configs]
        return [used(chunks[-1]) for chunks in map(list, streams)]
    if way == "batch":
        return [used(message) for message in model.batch([QUESTION] * 2, configs)]
    if way == "chain":
        chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model
        return [used(chain.invoke({"question": QUESTION}, one)) for one in configs]
    return asyncio.run(run())


@pytest.mark.parametrize("way", WAYS)
def test_a_chat_model_is_given_the_users_own_logs(model, logs, way):
    assert asked(model, way, [config(user) for user in USERS]) == [[logs["ada"]], [logs["bob"]]]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_user_a_chat_model_is_given_nothing(model, way, caplog):
    assert asked(model, way, [{}, {}]) == [[], []]
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["Nothing is recalled. The function that is where= failed (KeyError)."] * 2


def test_calls_that_are_given_no_config_know_their_user(model, logs):
    messages = [[HumanMessage(QUESTION)]]
    result = model.generate(messages, metadata={"user_id": "bob"})
    assert used(result.generations[0][0].message) == [logs["bob"]]

    def step(question):
        other = model.generate(messages, metadata={"user_id": "bob"}).generations[0][0]
        assert used(other.message) == [logs["bob"]]
        (answer,) = model.generate(messages).generations[0]
        return used(answer.message) + used(model.invoke(question, {"metadata": {"step": 1}}))

    assert RunnableLambda(step).invoke(QUESTION, config("ada")) == [logs["ada"]] * 2
    assert used(model.generate(messages).generations[0][0].message) == []


def test_the_function_sees_what_is_configurable(model, logs):
    by_thread = {"where": lambda config: {"user_id": config["configurable"]["user"]}}
    configurable = {"configurable": {"user": "bob"}}
    assert used(model.invoke(QUESTION, configurable, **by_thread)) == [logs["bob"]]
    assert used([*model.stream(QUESTION, configurable, **by_thread)][-1]) == [logs["bob"]]
    assert used(model.invoke(QUESTION, config("bob"), **by_thread)) == []


@pytest.mark.parametrize("where", NO_FILTERS)
def test_what_is_no_filter_recalls_nothing_and_costs_no_answer(small, memory, logs, where, caplog):
    model = LAGChatModel(small, memory=memory, where=where, max_tokens=2, temperature=0)
    agent = create_agent(FakeChatModel(), middleware=[memory.middleware(where=where)])
    inputs = {"messages": QUESTION}
    for run in (
        lambda: used(model.invoke(QUESTION, config("ada"))),
        lambda: memory.as_retriever(where=where).invoke(QUESTION, config("ada")),
        lambda: "1111" in memory.as_tool(where=where).invoke({"query": QUESTION}, config("ada")),
        lambda: "1111" in str(agent.invoke(inputs, config("ada"))),
    ):
        caplog.clear()
        assert not run()
        warnings = [one for one in caplog.records if one.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert "Nothing is recalled. The function that is where=" in warnings[0].getMessage()
        assert "secret" not in caplog.text


def test_a_malformed_filter_is_refused_at_once(small, memory):
    with pytest.raises(StoreError):
        LAGChatModel(small, memory=memory, where={"$nor": 1})
    model = LAGChatModel(small, memory=memory, max_tokens=2)
    with pytest.raises(StoreError):
        model.invoke(QUESTION, where={})


@pytest.mark.parametrize("recall", ["run", "step"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_an_agent_is_given_the_users_own_logs(memory, logs, recall, way):
    model = FakeLAGChatModel()
    agent = create_agent(model, middleware=[memory.middleware(where=of_user, recall=recall)])
    inputs = {"messages": QUESTION}
    for user in USERS:
        if way == "invoke":
            agent.invoke(inputs, config(user))
        elif way == "stream":
            list(agent.stream(inputs, config(user)))
        else:
            asyncio.run(agent.ainvoke(inputs, config(user)))
    given = [[one.partition("#")[0] for one in kwargs["kv_log_ids"]] for kwargs in model.kwargs]
    assert given == [[logs["ada"]], [logs["bob"]]]


async def test_retriever_and_tool_find_the_users_own_logs(memory, logs):
    retriever, tool = memory.as_retriever(where=of_user), memory.as_tool(where=of_user)
    chain = RunnableLambda(lambda question: retriever.invoke(question))
    for user, code in zip(USERS, ("1111", "2222"), strict=True):
        for documents in (
            retriever.invoke(QUESTION, config(user)),
            await retriever.ainvoke(QUESTION, config(user)),
            (await retriever.abatch([QUESTION], config(user)))[0],
            chain.invoke(QUESTION, config(user)),
        ):
            assert [document.id for document in documents] == [logs[user]]
        agent = create_agent(FakeChatModel(call("recall_logs", query=QUESTION), "-"), [tool])
        for found in (
            tool.invoke({"query": QUESTION}, config(user)),
            await tool.ainvoke({"query": QUESTION}, config(user)),
            agent.invoke({"messages": "Go."}, config(user))["messages"][-2].text,
        ):
            assert found.count("It is") == 1
            assert code in found
    assert set(tool.args) == {"query"}


def test_runs_of_two_users_that_say_the_same_are_two_logs(memory, no_worker):
    handler = memory.callback_handler()
    for user in (*USERS, "ada"):
        FakeChatModel("It is 3333.").invoke(QUESTION, config(user, callbacks=[handler]))
    memory.embed_pending()
    infos = memory.store.ledger.info()
    assert {info.trace.metadata["user_id"]: info.times_seen for info in infos} == {
        "ada": 2,
        "bob": 1,
    }
    for user in USERS:
        (found,) = memory.recall(QUESTION, where={"user_id": user})
        assert found.trace.metadata["user_id"] == user
    assert len(memory.recall(QUESTION)) == 1  # for everybody: once is enough
    (info,) = memory.store.ledger.info(where={"user_id": "ada"})
    memory.delete(info.id)
    assert memory.recall(QUESTION, where={"user_id": "ada"}) == []
    assert len(memory.recall(QUESTION, where={"user_id": "bob"})) == 1


def test_metadata_of_odd_values_survives_a_restart(memory, no_worker, embedder, tmp_path):
    odd = {"a": float("inf"), "b": "\ud800", "c": 1 << 70, "d": True, "e": "x" * 600, "\0": 1.0}
    given = config("ada", callbacks=[memory.callback_handler()])
    given["metadata"] |= odd
    FakeChatModel("Odd.").invoke(QUESTION, given)
    archive = tmp_path / "archive.lag"
    memory.export_to(archive)
    memory.delete(list(memory.store.ledger.ids()))
    memory.import_from(archive)
    memory.embed_pending()
    (log,) = memory.recall(QUESTION, where={"user_id": "ada", "d": True}, min_score=-1)
    assert log.trace.metadata["a"] == float("inf")
    assert list(memory.store.ledger.damaged()) == []

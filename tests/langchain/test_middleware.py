"""Recall for agents of ``create_agent``: as KV for our model, as text for others."""

from __future__ import annotations

import asyncio
import logging

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRetryMiddleware, wrap_model_call
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from lag_integrations import KVLogMemory, Trace
from lag_integrations.chat.current import current_memory
from lag_integrations.errors import EmbedderMismatchError, StoreError
from lag_integrations.langchain import KVLogMiddleware
from lag_integrations.traces.sources import Source, hash_of
from tests.conftest import qa
from tests.helpers import added
from tests.langchain.fake_chat_model import FakeChatModel, FakeLAGChatModel, call
from tests.store.processes import importing_without_langgraph, result_of

VAULT = qa("What is the code of the vault in Lima?", "The vault's code is 7741.")
FERRY = qa("What does the Ostrava ferry carry?", "It carries bees.", metadata={"team": "ships"})
QUESTION = "Which code opens the vault in Lima?"
ABOUT_FERRY = "What is carried by the Ostrava ferry?"


@tool
def look_up(topic: str) -> str:
    """Look something up."""
    return f"{topic}: see the Ostrava ferry and what it carries"


@pytest.fixture
def ids(memory):
    """Ids of the vault's log and the ferry's."""
    return added(memory, VAULT, FERRY)


def ask(model, middleware, question=QUESTION, *, config=None, **kwargs):
    agent = create_agent(model, middleware=[middleware], **kwargs)
    return agent.invoke({"messages": question}, config)


def uses(memory):
    """How often each log was recalled."""
    memory.flush()
    return {info.id: info.times_recalled for info in memory.store.ledger.info()}


# Our model


def test_our_model_is_given_ids_and_nothing_else(memory, ids):
    model = FakeLAGChatModel()
    ask(model, memory.middleware())
    assert model.kwargs == [{"kv_log_ids": ids[:1]}]
    assert [message.content for message in model.seen[0]] == [QUESTION]
    assert model.memories == [memory]
    assert current_memory.get() is None


def test_where_nothing_fits_our_model_is_told_to_use_nothing(memory, ids):
    model = FakeLAGChatModel(memory=memory)
    ask(model, memory.middleware(), "Who painted the ceiling of the chapel?")
    assert model.kwargs == [{"kv_log_ids": []}]


def test_other_model_settings_stay(memory, ids):
    class Warmer(AgentMiddleware):
        def wrap_model_call(self, request, handler):
            return handler(request.override(model_settings={"temperature": 0.3}))

    model = FakeLAGChatModel()
    agent = create_agent(model, middleware=[Warmer(), memory.middleware()])
    agent.invoke({"messages": QUESTION})
    assert model.kwargs == [{"temperature": 0.3, "kv_log_ids": ids[:1]}]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda model: model.bind(temperature=0),
        lambda model: model.with_retry(),
        lambda model: model.with_config(tags=["a"]).bind(seed=1),
        lambda model: model.with_fallbacks([FakeLAGChatModel()]),
        lambda model: model.configurable_alternatives(
            ConfigurableField(id="model"), default_key="ours", other=FakeChatModel()
        ),
    ],
)
def test_our_model_is_known_in_whatever_it_is_wrapped(memory, ids, wrapped):
    model = FakeLAGChatModel()
    ask(wrapped(model), memory.middleware())
    assert model.kwargs[0]["kv_log_ids"] == ids[:1]


def test_what_may_be_another_model_is_given_text(memory, ids):
    ours, other = FakeLAGChatModel(), FakeChatModel()
    ask(other.with_fallbacks([ours]), memory.middleware())
    assert "7741" in other.seen[0][0].text
    chosen = ours.configurable_alternatives(
        ConfigurableField(id="model"), default_key="ours", other=other
    )
    ask(chosen, memory.middleware(), config={"configurable": {"model": "other"}})
    assert "kv_log_ids" not in other.kwargs[1]
    assert "7741" in other.seen[1][0].text


async def test_the_memory_is_known_in_every_way_to_run_an_agent(memory, ids):
    def fresh():
        model = FakeLAGChatModel(call("look_up", topic="x"), "done")
        return model, create_agent(model, [look_up], middleware=[memory.middleware()])

    given = {"messages": QUESTION}

    async def drained(stream):
        return [one async for one in stream]

    for run in (
        lambda agent: asyncio.to_thread(agent.invoke, given),
        lambda agent: asyncio.to_thread(lambda: list(agent.stream(given, stream_mode="messages"))),
        lambda agent: asyncio.to_thread(lambda: agent.batch([given])),
        lambda agent: agent.ainvoke(given),
        lambda agent: drained(agent.astream(given, stream_mode="messages")),
        lambda agent: drained(agent.astream_events(given, version="v2")),
    ):
        model, agent = fresh()
        await run(agent)
        assert model.memories == [memory, memory]
        assert [kwargs["kv_log_ids"] for kwargs in model.kwargs] == [ids[:1]] * 2
        assert current_memory.get() is None


async def test_two_agents_at_once_keep_their_memories_apart(memory, ids, tmp_path, embedder):
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        pairs = [(FakeLAGChatModel(), each) for each in (memory, other) for _ in range(4)]
        await asyncio.gather(
            *(
                create_agent(model, middleware=[each.middleware()]).ainvoke({"messages": QUESTION})
                for model, each in pairs
            )
        )
        for model, each in pairs:
            assert model.memories == [each]
            assert model.kwargs[0]["kv_log_ids"] == (ids[:1] if each is memory else [])


def test_text_for_our_model_on_demand_leaves_its_own_recall_off(memory, ids):
    model = FakeLAGChatModel(memory=memory)
    ask(model, memory.middleware(as_text=True))
    assert model.kwargs == [{"kv_log_ids": []}]
    assert "7741" in model.seen[0][0].text


# Other models


def test_another_model_reads_the_logs_in_its_system_message(memory, ids):
    model = FakeChatModel()
    state = ask(model, memory.middleware(), system_prompt="Be brief.")
    system, question = model.seen[0]
    assert system.text.startswith("Be brief.\n\n")
    assert VAULT.task in system.text
    assert VAULT.last_response in system.text
    assert FERRY.last_response not in system.text
    assert system.additional_kwargs["lag"] == {"log_ids": ids[:1], "system": "Be brief."}
    assert question.content == QUESTION
    assert model.kwargs == [{}]
    assert [message.content for message in state["messages"]] == [QUESTION, "done"]


def test_without_a_system_message_there_is_one(memory, ids):
    model = FakeChatModel()
    ask(model, memory.middleware())
    assert "7741" in model.seen[0][0].text
    assert model.seen[0][0].additional_kwargs["lag"] == {"log_ids": ids[:1], "system": None}


def test_content_blocks_of_a_system_message_survive(memory, ids):
    blocks = [
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        {"type": "image", "url": "https://example.org/a.png"},
    ]
    given = SystemMessage(blocks, id="s1", additional_kwargs={"x": 1})
    model = FakeChatModel()
    ask(model, memory.middleware(), system_prompt=given)
    system = model.seen[0][0]
    assert system.content[:2] == blocks
    assert "7741" in system.content[2]["text"]
    assert (system.id, system.additional_kwargs["x"]) == ("s1", 1)
    assert system.additional_kwargs["lag"]["system"] == "Be brief."
    assert given.content == blocks  # the agent's own is as it was
    assert given.additional_kwargs == {"x": 1}


def test_where_nothing_fits_another_model_gets_what_it_would_get_anyhow(memory, ids):
    model = FakeChatModel()
    ask(model, memory.middleware(), "Who painted the chapel?", system_prompt="Be brief.")
    assert model.seen[0][0] == SystemMessage("Be brief.")


def test_the_text_is_added_once_a_call_not_once_a_step(memory, ids):
    model = FakeChatModel(call("look_up", topic="x"), call("look_up", topic="y"), "done")
    ask(model, memory.middleware(), tools=[look_up])
    assert [messages[0].text.count("7741") for messages in model.seen] == [1, 1, 1]
    assert all("lag" in messages[0].additional_kwargs for messages in model.seen)


def test_a_budget_drops_the_worst_logs(memory):
    near, far = added(memory, VAULT, qa("What is the code of the vault in Quito?", "It is 5123."))
    wide, narrow = FakeChatModel(), FakeChatModel()
    ask(wide, memory.middleware())
    ask(narrow, memory.middleware(max_chars=100))
    assert wide.seen[0][0].additional_kwargs["lag"]["log_ids"] == [near, far]
    assert narrow.seen[0][0].additional_kwargs["lag"]["log_ids"] == [near]
    assert "5123" not in narrow.seen[0][0].text


# When, and what for


def logs_in(references):
    return [reference.partition("#")[0] for reference in references]


def test_a_run_recalls_once_and_keeps_the_ids_to_itself(memory, ids):
    model = FakeLAGChatModel(call("look_up", topic="x"), "done")
    agent = create_agent(model, [look_up], middleware=[memory.middleware()])
    state = agent.invoke({"messages": QUESTION, "lag_log_ids": ["forged"]})
    assert [kwargs["kv_log_ids"] for kwargs in model.kwargs] == [ids[:1]] * 2
    assert "lag_log_ids" not in state
    assert "lag_log_ids" not in agent.get_input_jsonschema()["properties"]
    assert uses(memory) == {ids[0]: 1, ids[1]: 0}


def test_a_step_recalls_by_the_task_and_what_came_of_the_last_step(memory, ids):
    model = FakeLAGChatModel(call("look_up", text="The ferry!", topic="bees"), "done")
    ask(model, memory.middleware(recall="step", k=2, min_score=0.4), tools=[look_up])
    first, second = (kwargs["kv_log_ids"] for kwargs in model.kwargs)
    assert first == [f"{ids[0]}#0"]
    assert second == [f"{ids[1]}#0", *first]
    reader = FakeChatModel(call("look_up", text="The ferry!", topic="bees"), "done")
    ask(reader, memory.middleware(recall="step", min_score=0.4), tools=[look_up])
    assert "bees" not in reader.seen[0][0].text
    assert "It carries bees." in reader.seen[1][0].text


def test_a_step_does_not_ask_for_what_an_earlier_turn_said(memory, ids):
    model = FakeLAGChatModel()
    said = AIMessage(f"{FERRY.task} {FERRY.last_response} The Ostrava ferry carries bees.")
    history = [HumanMessage(ABOUT_FERRY), said, HumanMessage(QUESTION)]
    ask(model, memory.middleware(recall="step", min_score=0.4), history)
    assert model.kwargs[0]["kv_log_ids"] == [f"{ids[0]}#0"]


def test_of_a_run_the_step_is_given_that_comes_next(memory):
    """The one that was done when a run stood where the new one stands; none of them twice."""
    said = [("I look for it.", "blue door"), ("I read the note.", "7741")]
    messages = [{"role": "user", "content": "Open the vault in Lima."}]
    for text, result in said:
        tool_call = {"id": text, "name": "look_up", "args": {"topic": result}}
        messages += [
            {"role": "assistant", "content": text, "tool_calls": [tool_call]},
            {"role": "tool", "tool_call_id": text, "content": result},
        ]
    messages.append({"role": "assistant", "content": "It is open."})
    (log_id,) = added(memory, Trace.from_messages(messages))
    model = FakeLAGChatModel(
        call("look_up", text="I look for the note.", topic="I read the note."), "Open."
    )
    middleware = memory.middleware(recall="step", k=1, min_score=0.2)
    ask(model, middleware, "Open the vault in Lima.", tools=[look_up])
    first, second = (kwargs["kv_log_ids"] for kwargs in model.kwargs)
    assert first == [f"{log_id}#0"]
    assert second == [f"{log_id}#1"]


@pytest.mark.parametrize("recall", ["run", "step"])
async def test_the_newest_question_of_a_thread_is_recalled_for(memory, ids, recall):
    model = FakeLAGChatModel()
    agent = create_agent(
        model, middleware=[memory.middleware(recall=recall)], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "t"}}
    for question in (QUESTION, ABOUT_FERRY, "Who painted the chapel?"):
        await agent.ainvoke({"messages": question}, config)
    given = [logs_in(kwargs["kv_log_ids"]) for kwargs in model.kwargs]
    assert given == [[ids[0]], [ids[1]], []]


@pytest.mark.parametrize("recall", ["run", "step"])
@pytest.mark.parametrize("trimmed", [False, True])
def test_turns_are_recalled_that_stand_in_no_prompt(memory, recall, trimmed):
    _older, mine = added(memory, qa(QUESTION, "It is 7741!"), qa(QUESTION, "It is 7741."))

    @wrap_model_call
    def trim(request, handler):
        return handler(request.override(messages=request.messages[-1:]))

    model = FakeLAGChatModel("It is 7741.", "Bees.")
    agent = create_agent(
        model,
        middleware=[*([trim] if trimmed else []), memory.middleware(recall=recall, k=1)],
        checkpointer=InMemorySaver(),
    )
    for _ in range(3):
        agent.invoke({"messages": QUESTION}, {"configurable": {"thread_id": "mine"}})
    first, *later = (logs_in(kwargs["kv_log_ids"]) for kwargs in model.kwargs)
    assert first == [mine]
    assert later == ([[mine]] * 2 if trimmed else [[]] * 2)  # nor is the older one


@pytest.mark.parametrize("recall", ["run", "step"])
def test_another_log_takes_the_place_of_an_earlier_turn(memory, recall):
    other, _mine = added(
        memory, qa("Which code opens the safe in Lima?", "8000."), qa(QUESTION, "It is 7741.")
    )
    model = FakeLAGChatModel(call("look_up", topic="x"), "It is open.")
    history = [HumanMessage(QUESTION), AIMessage("It is 7741."), HumanMessage(QUESTION)]
    middleware = memory.middleware(recall=recall, k=1, min_score=0.3)
    ask(model, middleware, history, tools=[look_up])
    assert [logs_in(kwargs["kv_log_ids"]) for kwargs in model.kwargs] == [[other]] * 2
    assert uses(memory)[other] == 1  # once a run


@pytest.mark.parametrize("kind", [FakeChatModel, FakeLAGChatModel])
def test_as_text_the_answer_of_another_case_is_left_out(memory, kind):
    messages = [
        {"role": "user", "content": "What is the quick ratio of 40 and 20?"},
        {"role": "assistant", "content": "I look up the formula."},
        {"role": "user", "content": "It is assets by debts."},
        {"role": "assistant", "content": "40 / 20 = 2.00"},
    ]
    added(memory, Trace.from_messages(messages))
    for numbers, told in (("90 and 30", False), ("40 and 20", True)):
        model = kind()
        ask(model, memory.middleware(as_text=True), f"What is the quick ratio of {numbers}?")
        text = model.seen[0][0].text
        assert ("It is assets by debts." in text, "2.00" in text) == (not told, told)


NOTES = [
    Document("The code in Lima is 7741.", id="n1"),
    Document("The code in Lima is 9006.", id="n1"),  # the same note, changed
]


@pytest.mark.parametrize("recall", ["run", "step"])
@pytest.mark.parametrize("kind", [FakeChatModel, FakeLAGChatModel])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_log_of_a_document_that_changed_gives_its_place_to_another(
    memory, no_worker, recall, kind, as_text, way
):
    def source(note):
        return {"sources": [Source(note.id, (), hash_of(note.page_content)).to_json()]}

    old, other = added(
        memory,
        VAULT.model_copy(update={"metadata": source(NOTES[0])}),
        qa("What is the code of the vault in Quito?", "It is 5123."),
    )

    @tool(response_format="content_and_artifact")
    def read_note(changed: bool):
        """Read the note."""
        return "Lima.", [NOTES[changed]]

    async def given(changed):
        model = kind(call("read_note", changed=changed), "done")
        middleware = memory.middleware(recall=recall, k=k, min_score=0.3, as_text=as_text)
        agent = create_agent(model, [read_note], middleware=[middleware])
        config = {"callbacks": [memory.callback_handler()]}
        if way == "invoke":
            agent.invoke({"messages": QUESTION}, config)
        else:
            await agent.ainvoke({"messages": QUESTION}, config)
        if kind is FakeLAGChatModel and not as_text:
            return [logs_in(kwargs["kv_log_ids"]) for kwargs in model.kwargs]
        return [messages[0].additional_kwargs["lag"]["log_ids"] for messages in model.seen]

    k = 1 if recall == "run" else 2  # no step is recalled twice
    assert await given(changed=False) == [[old, other][:k]] * 2
    assert await given(changed=True) == [[old, other][:k], [other]]


def test_k_score_and_filter(memory, ids):
    def given(**settings):
        model = FakeLAGChatModel()
        ask(model, memory.middleware(**settings))
        return model.kwargs[0]["kv_log_ids"]

    assert given(min_score=-1) == ids
    assert given(min_score=-1, k=1) == ids[:1]
    assert given(min_score=-1, where={"team": "ships"}) == ids[1:]
    assert given(min_score=0.99) == []
    assert given(k=0) == []


def test_a_retried_call_gets_the_same(memory, ids):
    model = FakeLAGChatModel(RuntimeError("busy"), "done")
    retry = ModelRetryMiddleware(max_retries=1, initial_delay=0)
    agent = create_agent(model, middleware=[retry, memory.middleware()])
    agent.invoke({"messages": QUESTION})
    assert [kwargs["kv_log_ids"] for kwargs in model.kwargs] == [ids[:1]] * 2
    assert model.memories == [memory] * 2


def test_only_ids_reach_tracers(memory, ids):
    seen = []

    class Tracer(BaseCallbackHandler):
        def on_chat_model_start(self, serialized, messages, **kwargs):
            seen.append(kwargs["invocation_params"])

    ask(FakeLAGChatModel(), memory.middleware(), config={"callbacks": [Tracer()]})
    assert seen[0]["kv_log_ids"] == ids[:1]
    assert "7741" not in str(seen)


def test_what_was_recalled_is_not_captured_as_new(memory, ids):
    config = {"callbacks": [memory.callback_handler()]}
    ask(FakeChatModel(), memory.middleware(), config=config, system_prompt="Be brief.")
    memory.embed_pending()
    new = [log for log in memory.recall(QUESTION, k=9, min_score=-1) if log.id not in ids]
    assert [message.text for message in new[0].trace.messages] == ["Be brief.", QUESTION, "done"]
    assert new[0].trace.helped_by == (ids[0],)


# When the memory fails


@pytest.mark.parametrize("recall", ["run", "step"])
@pytest.mark.parametrize("kind", [FakeChatModel, FakeLAGChatModel])
def test_a_memory_that_fails_costs_the_agent_nothing(memory, ids, caplog, recall, kind):
    model = kind()
    middleware = memory.middleware(recall=recall)
    memory.close()
    with caplog.at_level(logging.DEBUG, "lag_integrations"):
        state = ask(model, middleware, "my secret question")
    assert state["messages"][-1].content == "done"
    assert "WARNING" in [record.levelname for record in caplog.records]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("from_the_start", [False, True])
def test_an_embedder_that_fails_costs_the_agent_nothing(
    memory, ids, embedder, caplog, from_the_start
):
    def embed(texts):
        if down:
            raise ConnectionError(f"could not send {texts}")
        return embedder.encode(texts)

    down = from_the_start
    with KVLogMemory(memory.path, embedder=embed) as memory:
        if not from_the_start:
            assert memory.recall(QUESTION)
        down = True
        model = FakeLAGChatModel()
        ask(model, memory.middleware(), "my secret question")
        down = False
        ask(model, memory.middleware())
    assert model.kwargs == [{"kv_log_ids": []}, {"kv_log_ids": ids[:1]}]
    assert "ConnectionError" in caplog.text
    assert "secret" not in caplog.text


def test_a_log_deleted_meanwhile_is_left_out(memory, ids):
    @tool
    def forget() -> str:
        """Forget it."""
        memory.delete(ids)
        return "forgotten"

    model = FakeChatModel(call("forget"), "done")
    ask(model, memory.middleware(), tools=[forget])
    assert "7741" in model.seen[0][0].text
    assert "7741" not in str(model.seen[1])


def test_a_wrong_embedder_is_seen(memory, ids):
    with (
        KVLogMemory(memory.path, embedder=lambda texts: [[1.0, 0.0]] * len(texts)) as other,
        pytest.raises(EmbedderMismatchError),
    ):
        ask(FakeLAGChatModel(), other.middleware())


def test_wrong_settings_are_refused_at_once(memory):
    with pytest.raises(ValueError, match="'run' or 'step'"):
        memory.middleware(recall="always")
    with pytest.raises(StoreError, match="filter"):
        KVLogMiddleware(memory, where={})


def test_without_langgraph_the_rest_works_and_the_extra_is_named():
    errors = result_of(importing_without_langgraph)
    assert len(errors) == 2
    assert all("lag_integrations[agents]" in error for error in errors)

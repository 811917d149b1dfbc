"""LAGMemory: logs reach the LLM of agents and chat engines with their conversation."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import (
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.memory.memory import InsertMethod
from llama_index.core.tools import RetrieverTool
from llama_index.core.workflow import Context, JsonPickleSerializer, JsonSerializer

from lag_integrations import Engine, KVLogMemory
from lag_integrations.chat import response
from lag_integrations.errors import EmbedderMismatchError, StoreError
from lag_integrations.llama_index import (
    LAGLLM,
    KVLogMemoryBlock,
    LAGMemory,
    settings,
)
from lag_integrations.llama_index import task_recall as recalled
from lag_integrations.llama_index.message_tag import tag_of
from lag_integrations.memory.registry import open_memories
from lag_integrations.traces.sources import Source, hash_of
from tests.conftest import qa, random_model
from tests.fake_engine import calls
from tests.helpers import added
from tests.llama_index.fake_llm import VAULT, answer, call, fake_llm, named, texts, user
from tests.store.processes import result_of

QUESTION = "Which code does the vault in Lima have?"
OTHER = "Tell me what the Ostrava ferry carries."


@pytest.fixture
def lag(memory, logs):
    return LAGMemory(memory)


@pytest.fixture
def opened(monkeypatch):
    """The runs that were to be captured: memory and thread."""
    runs: list[tuple[KVLogMemory, str]] = []
    monkeypatch.setattr(
        settings,
        "open_run",
        lambda memory, thread=None, task=None, **_: runs.append((memory, thread, task)),
    )
    return runs


@pytest.fixture
def noted(monkeypatch):
    """The texts that were told to capture."""
    told: dict[str, str] = {}
    monkeypatch.setattr(recalled, "note_recalled", told.update)
    return told


@pytest.fixture(scope="module")
def index():
    documents = [Document(text="Lima is a city.")]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(4))


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Rain in {city}."


def code_runner(code: str) -> str:
    """Run code."""
    return "42"


# The messages are those of the history.


@pytest.mark.parametrize("way", ["sync", "async"])
def test_the_conversation_is_kept_in_order(lag, way):
    first, second, third = user("One."), answer("Two."), user("Three.")

    async def run():
        await lag.aput(first)
        await lag.aput_messages([second, third])
        assert await lag.aget_all() == [first, second, third]
        assert [m.content for m in await lag.aget()] == ["One.", "Two.", "Three."]
        await lag.aset([third])
        assert await lag.aget_all() == [third]
        await lag.areset()
        assert await lag.aget_all() == await lag.aget() == []

    if way == "async":
        asyncio.run(run())
        return
    lag.put(first)
    lag.put_messages([second, third])
    assert lag.get_all() == [first, second, third]
    assert [m.content for m in lag.get()] == ["One.", "Two.", "Three."]
    lag.set([third])
    assert lag.get_all() == [third]
    lag.reset()
    assert lag.get_all() == lag.get() == []


async def test_async_ways_are_the_historys_own(memory, no_worker):
    class OnlyAsync(ChatMemoryBuffer):
        def put(self, message):
            raise AssertionError("sync")

        set = put_messages = get = get_all = reset = put

        async def aput(self, message):
            self.chat_store.add_message(self.chat_store_key, message)

        async def aput_messages(self, messages):
            for message in messages:
                await self.aput(message)

        async def aset(self, messages):
            self.chat_store.set_messages(self.chat_store_key, messages)

        async def aget(self, input=None, **kwargs):
            return self.chat_store.get_messages(self.chat_store_key)

        async def aget_all(self):
            return await self.aget()

        async def areset(self):
            await self.aset([])

    lag = LAGMemory(memory, history=OnlyAsync.from_defaults())
    await lag.aset([user("One.")])
    await lag.aput(answer("Two."))
    await lag.aput_messages([user("Three.")])
    assert len(await lag.aget()) == len(await lag.aget_all()) == 3
    assert named(await lag.aget()) == []
    assert named(await lag.aget_all()) is None  # though the history gave its own list
    await lag.areset()
    assert await lag.aget() == []


def test_it_is_a_memory_and_true_while_it_is_empty(lag):
    assert "BaseMemory" in [cls.__name__ for cls in LAGMemory.__mro__]
    assert LAGMemory.class_name() == "LAGMemory"
    assert lag
    assert QUESTION not in repr(LAGMemory.from_defaults(lag._memory, [user(QUESTION)]))
    assert not hasattr(LAGMemory, "__len__")
    assert not hasattr(LAGMemory, "__bool__")


def test_an_empty_one_is_kept_by_agents_and_engines(lag):
    llm, _ = fake_llm("Fine.")
    SimpleChatEngine.from_defaults(llm=llm, memory=lag).chat("Hi.")
    assert [m.content for m in lag.get_all()] == ["Hi.", "Fine."]

    async def run():
        await FunctionAgent(llm=llm, tools=[]).run("Again.", memory=lag)

    asyncio.run(run())
    assert [m.content for m in lag.get_all()][2:] == ["Again.", "Fine."]


def test_what_it_is_made_of(memory, no_worker):
    llm, _ = fake_llm("Fine.")
    lag = LAGMemory.from_defaults(memory, chat_history=[user("Hi.")], llm=llm, k=2, session_id="s")
    assert (lag.k, lag.session_id) == (2, "s")
    assert [m.content for m in lag.get_all()] == ["Hi."]
    assert lag.history.token_limit == llm.metadata.context_window * 3 // 4
    assert LAGMemory.from_defaults(memory, token_limit=99).history.token_limit == 99
    assert LAGMemory(memory).session_id != LAGMemory(memory).session_id
    with pytest.raises(ValueError, match=r"LAGMemory\(KVLogMemory"):
        LAGMemory.from_defaults(chat_history=[])
    with pytest.raises(ValueError, match=r"LAGMemory\(KVLogMemory"):
        LAGMemory("./memory")
    with pytest.raises(ValueError, match="min_scor"):
        LAGMemory(memory, min_scor=0.5)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        LAGMemory(memory, k=-1)
    with pytest.raises(StoreError):
        LAGMemory(memory, where={"$nor": 1})


def test_engines_count_their_prefix_by_the_historys_tokenizer(memory, no_worker):
    lag = LAGMemory.from_defaults(memory, token_limit=30)
    llm, seen = fake_llm("word " * 10)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=lag, system_prompt="word " * 15)
    engine.chat("One.")
    engine.chat("Two.")
    assert [m.content for m in seen[1][1:]] == ["Two."]  # the first turn did not fit any more


# Logs are named in a copy of the last user message.


@pytest.mark.parametrize("way", ["sync", "async"])
def test_logs_are_named_in_a_copy_of_the_last_user_message(lag, memory, logs, way):
    lag.put_messages([user("Hi."), answer("Hello."), user(QUESTION), answer("Let me see.")])
    messages = lag.get() if way == "sync" else asyncio.run(lag.aget())
    assert messages[2].additional_kwargs["lag"] == {"memory": memory.id, "log_ids": [logs[0]]}
    assert all("lag" not in messages[place].additional_kwargs for place in (0, 1, 3))
    assert messages[2].content == QUESTION
    assert all("lag" not in message.additional_kwargs for message in lag.get_all())


def test_it_recalls_by_the_input_if_there_is_one(lag, logs):
    lag.put_messages([user(QUESTION), answer("7741.")])
    assert named(lag.get(input=OTHER)) == [logs[1]]
    assert named(lag.get()) == [logs[0]]


def test_a_prompt_for_which_nothing_fits_says_so(lag):
    lag.put(user("Sing me a song about trees."))
    assert named(lag.get()) == []  # so that the LLM does not recall by another message


def test_without_a_user_message_nothing_is_recalled(lag, asked):
    lag.put_messages([answer("Hello."), answer("Anyone?")])
    assert named(lag.get()) is None
    assert asked == []


def test_an_input_before_all_messages_is_recalled_for(lag, logs):
    (message,) = lag.get(input=QUESTION)
    assert message.blocks == []
    assert named([message]) == [logs[0]]
    assert "…" in repr(message.additional_kwargs)  # a condense prompt has it, as it is printed
    assert logs[0] not in repr(message.additional_kwargs)


def test_a_task_is_recalled_for_once(lag, asked):
    lag.put(user(QUESTION))
    for _ in range(3):
        lag.get()
    lag.put(answer("Let me see."))
    lag.put(user("Result of executing the code given:\n\n42"))  # of a CodeActAgent
    lag.get()
    assert asked == [QUESTION]


def test_the_input_may_be_what_the_user_said_last(lag, asked):
    lag.put(user(QUESTION))
    lag.get()
    lag.get(input=QUESTION)  # an agent's later steps
    assert asked == [QUESTION]


@pytest.mark.parametrize("way", ["put", "aput", "put_messages", "aput_messages", "set", "aset"])
def test_the_same_words_again_are_recalled_for_anew(memory, no_worker, way):
    lag = LAGMemory(memory)
    lag.put(user(QUESTION))
    assert named(lag.get()) == []
    (log,) = added(memory, VAULT)
    assert named(lag.get()) == []
    message = user(QUESTION)
    given = [message] if way.endswith(("messages", "set")) else message
    result = getattr(lag, way)(given)
    if asyncio.iscoroutine(result):
        asyncio.run(result)
    assert named(lag.get()) == [log]


def test_its_settings_choose_what_is_recalled(memory, logs):
    def recalled_with(**settings):
        lag = LAGMemory(memory, **settings)
        lag.put(user(QUESTION))
        return named(lag.get())

    (team,) = added(memory, qa(QUESTION, "7741", metadata={"team": "safes"}))
    assert recalled_with(min_score=-1) == [team, *logs]
    assert recalled_with(min_score=-1, k=1) == [team]
    assert recalled_with(where={"team": "safes"}) == [team]
    assert recalled_with(min_score=0.99, where={"team": {"$ne": "safes"}}) == []
    assert recalled_with(k=0) == []


def test_a_follow_up_is_searched_with_what_was_said_before(memory, logs):
    lag = LAGMemory(memory, k=1)
    talk = [
        user("I stand at the vault in Lima."),
        answer("Good."),
        user("Which code does it have?"),
    ]
    lag.put(talk[-1])
    assert named(lag.get()) == []
    lag.set(talk)
    assert named(lag.get()) == logs[:1]


def test_logs_are_searched_by_what_the_user_of_the_memory_says(memory, logs):
    lag = LAGMemory(memory, k=1, query="code of the vault in Lima")
    lag.put(user("Hello there."))
    assert named(lag.get()) == logs[:1]
    again = LAGMemory.from_json(lag.to_json())
    assert named(again.get()) == logs[:1]

    seen = []
    lag = LAGMemory(memory, k=1, query=lambda messages: seen.append(messages) or OTHER)
    lag.put_messages([user("Hello."), answer("Good day."), user("What now?")])
    assert named(lag.get()) == logs[1:2]
    assert [message.content for message in seen[0]] == ["Hello.", "Good day.", "What now?"]
    with pytest.raises(ValueError, match="query= is a function"):
        lag.to_json()


async def test_a_query_that_fails_is_left_out(memory, logs, caplog):
    lag = LAGMemory(memory, k=1, query=lambda messages: 1 / 0)
    lag.put(user(QUESTION))
    assert named(lag.get()) == logs[:1]
    assert "query= failed (ZeroDivisionError)" in caplog.text


async def test_a_block_is_searched_by_a_query_of_ones_own(memory, logs):
    block = KVLogMemoryBlock(memory, k=1, query=lambda messages: OTHER)
    found = await block.aget([user("Hello.")], session_id="s")
    assert named(found) == logs[1:2]


async def test_what_a_react_agents_tool_gave_is_not_what_the_user_asked(puppet, memory, logs):
    """An LLM with a memory of its own recalls by the task, at every step."""
    puppet.says(
        'Thought: I must look.\nAction: weather\nAction Input: {"city": "Lima"}',
        "Thought: I can answer without using any more tools.\nAnswer: It is 7741.",
    )
    llm = LAGLLM(puppet, memory=memory, k=1)
    await ReActAgent(llm=llm, tools=[weather]).run(QUESTION)
    assert "Observation:" in puppet.prompts[1]
    assert puppet.injected == [1, 1]


@pytest.mark.parametrize("kind", ["function", "react"])
async def test_an_llm_with_a_query_of_ones_own_recalls_for_each_step(puppet, memory, logs, kind):
    if kind == "function":
        puppet.says(calls("look", at="Ostrava"), "Bees.")
    else:
        puppet.says(
            'Thought: I must look.\nAction: look\nAction Input: {"at": "Ostrava"}',
            "Thought: I can answer without using any more tools.\nAnswer: Bees.",
        )

    def look(at: str) -> str:
        """Look at something."""
        return f"What does the {at} ferry carry?"

    searched = []

    def step(messages):
        searched.append("\n".join(message.content or "" for message in messages[-2:]))
        return searched[-1]

    llm = LAGLLM(puppet, memory=memory, k=1, query=step)
    agent = (FunctionAgent if kind == "function" else ReActAgent)(llm=llm, tools=[look])
    output = await agent.run(QUESTION)
    assert ["Ostrava ferry" in query for query in searched] == [False, True]
    assert output.raw["lag"]["log_ids"] == [logs[1]]


def test_turns_that_stand_in_the_history_are_not_recalled(memory, logs):
    (own,) = added(memory, qa(QUESTION, "7741, I said.", metadata={"thread_id": "mine"}))
    lag = LAGMemory(memory, session_id="mine", k=1)
    lag.put(user(QUESTION))
    assert named(lag.get()) == [own]  # of this session, but forgotten by the history
    lag.put_messages([answer("Thought: easy.\nAnswer: 7741, I said."), user(QUESTION)])
    assert named(lag.get()) == [logs[0]]  # takes its place
    lag.set([user(OTHER), answer("7741, I said.")])
    assert named(lag.get(input=QUESTION)) == [own]  # another question's answer, and only that


def test_turns_that_the_history_has_let_go_are_recalled_again(memory, logs):
    (own,) = added(memory, qa(QUESTION, "7741, I said.", metadata={"thread_id": "mine"}))
    history = ChatMemoryBuffer.from_defaults(token_limit=40)
    lag = LAGMemory(memory, history=history, session_id="mine", k=1)
    lag.put_messages([user(QUESTION), answer("7741, I said."), user(QUESTION)])
    assert named(lag.get()) == [logs[0]]
    lag.put_messages([answer("word " * 30), user(QUESTION)])
    assert named(lag.get()) == [own]
    assert "7741" not in texts(lag.get())


def test_the_last_recall_is_told(memory, logs, monkeypatch):
    monkeypatch.setattr(settings, "open_run", lambda *_, **__: "r1")
    lag = LAGMemory(memory)
    assert lag.last_recall is None
    lag.put(user(QUESTION))
    lag.get()
    assert lag.last_recall["run_id"] == "r1"
    assert lag.last_recall["recalled"] == [logs[0]]
    assert lag.last_recall["scores"][0] > 0.8
    assert lag.last_recall["nearest_miss"] is None
    strict = LAGMemory(memory, min_score=0.99)
    strict.put(user(QUESTION))
    strict.get()
    assert strict.last_recall["recalled"] == []
    assert strict.last_recall["nearest_miss"]["log_id"] == logs[0]
    assert strict.last_recall["nearest_miss"]["score"] == lag.last_recall["scores"][0]
    assert copy.deepcopy(lag).last_recall is None


def test_reset_begins_a_new_session_and_forgets_no_logs(memory, lag, logs):
    before = lag.session_id
    lag.reset()
    middle = lag.session_id
    asyncio.run(lag.areset())
    assert len({before, middle, lag.session_id}) == 3
    lag.put(user(QUESTION))
    assert named(lag.get()) == [logs[0]]


def test_as_text_it_is_text_before_the_users_words(memory, logs, noted):
    lag = LAGMemory(memory, as_text=True)
    lag.put_messages([user("Hi."), answer("Hello."), user(QUESTION)])
    messages = lag.get()
    text, words = messages[2].blocks
    assert "The code of the vault in Lima is 7741." in text.text
    assert text.text.startswith("Similar tasks were solved before")
    assert words.text == QUESTION
    assert noted == {text.text: logs[0]}
    # Some LLMs hand what is in there to their API.
    assert all(message.additional_kwargs == {} for message in messages)
    assert [m.content for m in lag.get_all()] == ["Hi.", "Hello.", QUESTION]


def test_as_text_of_many_logs_is_capped(memory, no_worker, noted):
    many = [qa(f"{QUESTION} ({n})", f"It is {n}. " + "word " * 500) for n in range(5)]
    ids = added(memory, *many)
    lag = LAGMemory(memory, as_text=True, k=5)
    lag.put(user(QUESTION))
    *blocks, words = lag.get()[0].blocks
    assert words.text == QUESTION
    assert len(blocks) == 2
    assert sum(len(block.text) for block in blocks) < 6_500
    assert set(noted) == {block.text for block in blocks}
    assert set(noted.values()) < set(ids)


def test_as_text_nothing_is_added_where_nothing_fits(memory, logs):
    lag = LAGMemory(memory, as_text=True)
    assert lag.get(input="Sing me a song about trees.") == []
    (message,) = lag.get(input=QUESTION)
    assert "7741" in message.content
    lag.put(user("Sing me a song about trees."))
    assert lag.get() == lag.get_all()


def test_copies_share_neither_session_nor_what_was_recalled(memory, logs):
    lag = LAGMemory(memory)
    lag.put(user(QUESTION))
    assert tag_of(lag.get())["log_ids"] == [logs[0]]
    for other in (copy.deepcopy(lag), lag.model_copy(update={"where": {"team": "b"}})):
        other.where = {"team": "b"}
        assert tag_of(other.get())["log_ids"] == []
    assert copy.deepcopy(lag).session_id != lag.session_id
    lag.k = 0
    assert tag_of(lag.get())["log_ids"] == []


def test_text_for_a_task_that_is_not_in_the_history_yet(memory, logs):
    lag = LAGMemory(memory, as_text=True)
    lag.put(user("Hello there."))
    hello, recalled = lag.get(input=QUESTION)
    assert hello.content == "Hello there."
    assert "7741" in recalled.content


def test_reads_are_captured_unless_it_is_said_otherwise(memory, logs, opened):
    lag = LAGMemory(memory, session_id="s")
    lag.get()
    lag.put(user(QUESTION))
    asyncio.run(lag.aget())
    assert opened == [(memory, "s", None), (memory, "s", QUESTION)]
    LAGMemory(memory, capture=False).get(input=QUESTION)
    assert len(opened) == 2


# Memories that fail.


def test_a_closed_memory_breaks_no_agent(lag, memory, caplog):
    memory.close()
    llm, seen = fake_llm(call("weather", city="Lima"), "Rain.")

    async def run():
        return await FunctionAgent(llm=llm, tools=[weather]).run(QUESTION, memory=lag)

    assert str(asyncio.run(run())) == "Rain."
    assert named(seen[0]) == []
    assert [r.levelname for r in caplog.records if "Nothing is recalled" in r.message] == [
        "WARNING"
    ]
    assert QUESTION not in caplog.text


def test_a_memory_that_was_opened_again_is_used(lag, memory, logs, embedder):
    memory.close()
    with KVLogMemory(memory.path, embedder=embedder) as again:
        lag.put(user(QUESTION))
        assert lag.get()[0].additional_kwargs["lag"] == {"memory": again.id, "log_ids": [logs[0]]}


def test_another_embedder_is_an_error_that_says_so(memory, logs, monkeypatch):
    lag = LAGMemory(memory)
    state = lag.to_json()
    memory.close()
    with KVLogMemory(memory.path, embedder=lambda texts: [[1.0, 0.0] for _ in texts]) as wrong:
        again = LAGMemory.from_json(state)
        again.put(user(QUESTION))
        with pytest.raises(EmbedderMismatchError, match="reindex"):
            again.get()
        assert again._memory is wrong


# Kept as JSON.


@pytest.mark.parametrize("serializer", [JsonSerializer, JsonPickleSerializer])
async def test_a_context_keeps_it(memory, logs, serializer):
    lag = LAGMemory.from_defaults(
        memory, k=2, where={"x": {"$ne": 1}}, session_id="s", token_limit=500
    )
    llm, seen = fake_llm(call("weather", city="Lima"), "Rain.", "More rain.")
    agent = FunctionAgent(llm=llm, tools=[weather])
    context = Context(agent)
    await agent.run(QUESTION, ctx=context, memory=lag)
    kept = json.loads(json.dumps(context.to_dict(serializer=serializer())))
    assert "memory" in kept["state"]["state_data"]["_data"]

    context = Context.from_dict(agent, kept, serializer=serializer())
    again = await context.store.get("memory")
    assert isinstance(again, LAGMemory)
    assert again is not lag
    assert (again.k, again.where, again.session_id) == (2, {"x": {"$ne": 1}}, "s")
    assert again.history.token_limit == 500
    assert again.get_all() == lag.get_all()
    assert str(await agent.run(OTHER, ctx=context)) == "More rain."
    assert named(seen[-1]) == [logs[1]]
    assert [m.content for m in seen[-1] if m.role == "user"] == [QUESTION, OTHER]
    (tag,) = [m.additional_kwargs["lag"] for m in seen[-1] if "lag" in m.additional_kwargs]
    assert tag["memory"] == memory.id  # the one that is open, not a second one


def test_it_goes_through_json_and_back(lag):
    lag.put_messages([user(QUESTION), call("weather", city="Lima")])
    lag.put(user("").model_copy(update={"blocks": [ImageBlock(url="http://x.example/y.png")]}))
    assert json.loads(lag.to_json()) == json.loads(json.dumps(lag.to_dict()))
    for again in (
        LAGMemory.from_json(lag.to_json()),
        LAGMemory.from_dict(lag.to_dict()),
        LAGMemory.model_validate(lag.model_dump(mode="json")),
        LAGMemory.model_validate_json(lag.model_dump_json()),
    ):
        assert again.to_dict() == lag.to_dict()
        assert [m.blocks for m in again.get_all()[:2]] == [m.blocks for m in lag.get_all()[:2]]
    assert lag.to_dict()["class_name"] == "LAGMemory"


def test_a_history_with_a_store_of_its_own_is_not_lost_silently(memory, no_worker):
    lag = LAGMemory(memory, history=Memory.from_defaults(session_id="s"))
    with pytest.raises(ValueError, match="same session_id"):
        lag.to_json()


def going_on(state: Path, done: Connection) -> None:
    """Puts a question to a memory from its state, and a twin of it; tells what it then gives."""
    lag = LAGMemory.from_json(state.read_text())
    twin = LAGMemory.from_json(lag.to_json())
    assert open_memories.find_at(lag.path, lag.namespace) is None  # not before it is needed
    for each in (lag, twin):
        each.put(user(QUESTION))
    readers = [threading.Thread(target=each.get) for each in (lag, twin, lag, twin)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert lag._memory is twin._memory is open_memories.find_at(lag.path, lag.namespace)
    recalled = lag.get()[-1].additional_kwargs["lag"]["log_ids"]
    done.send(([message.content for message in lag.get_all()], recalled))


def test_another_process_goes_on_with_it(memory, logs, tmp_path):
    lag = LAGMemory(memory, session_id="s")
    lag.put_messages([user(OTHER), answer("Bees.")])
    state = tmp_path / "state.json"
    state.write_text(lag.to_json())
    assert result_of(going_on, state) == ([OTHER, "Bees.", QUESTION], logs[:1])


def test_a_folder_without_logs_is_not_made(lag, memory, tmp_path, caplog):
    state = {**lag.to_dict(), "path": str(tmp_path / "elsewhere")}
    again = LAGMemory.from_dict(state)
    again.put(user(QUESTION))
    assert again.get() == again.get_all()
    assert "open the KVLogMemory before" in caplog.text
    assert not (tmp_path / "elsewhere").exists()


def test_copies_share_the_logs_and_pickles_have_none(lag, memory, logs, caplog):
    lag.put(user(QUESTION))
    with caplog.at_level(logging.WARNING):
        deep, shallow = copy.deepcopy(lag), copy.copy(lag)
        pickled = pickle.loads(pickle.dumps(lag))
    assert caplog.records == []  # no complaint of what cannot be pickled
    assert deep._memory is shallow._memory is memory
    assert pickled._memory is None
    deep.put(answer("7741."))
    assert len(lag.get_all()) == len(pickled.get_all()) == 1
    for each in (deep, shallow, pickled):
        assert named(each.get()) == [logs[0]]


# With agents and chat engines.


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["function", "react", "code"])
async def test_agents_get_the_logs_at_each_step(lag, logs, asked, kind, streaming):
    last = "7741."
    if kind == "function":
        llm, seen = fake_llm(call("weather", city="Lima"), last)
        agent = FunctionAgent(llm=llm, tools=[weather], streaming=streaming)
    elif kind == "react":
        step = 'Thought: Look.\nAction: weather\nAction Input: {"city": "Lima"}'
        llm, seen = fake_llm(step, f"Thought: I know.\nAnswer: {last}")
        agent = ReActAgent(llm=llm, tools=[weather], streaming=streaming)
    else:
        llm, seen = fake_llm("<execute>print(42)</execute>", last)
        agent = CodeActAgent(code_runner, llm=llm, streaming=streaming)
    assert str(await agent.run(QUESTION, memory=lag)) == last
    assert [named(messages) for messages in seen] == [[logs[0]], [logs[0]]]
    assert asked == [QUESTION]
    assert all("lag" not in message.additional_kwargs for message in lag.get_all())
    assert str(await agent.run(OTHER, memory=lag)) == last
    assert named(seen[-1]) == [logs[1]]


@pytest.mark.parametrize("form", ["kv", "text"])
@pytest.mark.parametrize("kind", ["LAGMemory", "block"])
@pytest.mark.parametrize("agent", ["function", "react"])
async def test_a_log_of_a_document_that_changed_gives_its_place_to_another(
    memory, no_worker, form, kind, agent
):
    memory.unjudged_documents = "any"  # each conversation is a thread of its own
    source = Source(None, ("lima",), hash_of("The code is 7741."))
    other, old = added(
        memory,
        qa("What is the code of the vault in Quito?", "It is 5123."),
        VAULT.model_copy(update={"metadata": {"sources": [source.to_json()]}}),
    )
    settings = {"k": 1, "as_text": form == "text"}

    async def given(note):
        documents = [Document(text=note, id_="lima")]
        index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(4))
        tools = [RetrieverTool.from_defaults(index.as_retriever(), name="notes")]
        if agent == "function":
            llm, seen = fake_llm(call("notes", input="Lima"), "done")
            made = FunctionAgent(llm=llm, tools=tools, streaming=False)
        else:
            step = 'Thought: Look.\nAction: notes\nAction Input: {"input": "Lima"}'
            llm, seen = fake_llm(step, "Thought: I know.\nAnswer: done")
            made = ReActAgent(llm=llm, tools=tools, streaming=False)
        if kind == "LAGMemory":
            used = LAGMemory(memory, **settings)
        else:
            used = Memory.from_defaults(
                memory_blocks=[KVLogMemoryBlock(memory, **settings)],
                insert_method=InsertMethod.USER,
            )
        await made.run(QUESTION, memory=used)
        if form == "kv":
            return [named(messages) for messages in seen]
        logs = {old: "The code of the vault in Lima is 7741.", other: "It is 5123."}
        return [[key for key in logs if logs[key] in texts(messages)] for messages in seen]

    assert await given("The code is 7741.") == [[old], [old]]
    assert await given("The code is 9006.") == [[old], [other]]


async def test_agents_that_hand_over_all_get_the_logs(lag, logs, asked):
    first, seen_first = fake_llm(call("handoff", to_agent="second", reason="It knows."))
    second, seen_second = fake_llm(call("weather", city="Lima"), "7741.")
    agents = [
        FunctionAgent(name="first", description="Asks.", llm=first, tools=[]),
        FunctionAgent(name="second", description="Knows.", llm=second, tools=[weather]),
    ]
    workflow = AgentWorkflow(agents=agents, root_agent="first")
    assert str(await workflow.run(QUESTION, memory=lag)) == "7741."
    assert len(seen_second) == 2
    assert {tuple(named(m)) for m in (*seen_first, *seen_second)} == {(logs[0],)}
    assert set(asked) == {QUESTION}


@pytest.mark.parametrize("stream", [False, True])
def test_a_simple_engine_gets_the_logs(lag, logs, stream):
    llm, seen = fake_llm("7741.")
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=lag)
    for question in (QUESTION, OTHER):
        if stream:
            assert "".join(engine.stream_chat(question).response_gen) == "7741."
        else:
            assert str(engine.chat(question)) == "7741."
    assert [named(messages) for messages in seen] == [[logs[0]], [logs[1]]]


@pytest.mark.parametrize("way", ["sync", "async", "stream"])
@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
def test_context_engines_get_the_logs_from_the_first_question_on(lag, logs, index, kind, way):
    llm, seen = fake_llm("7741.")
    engine = kind.from_defaults(index.as_retriever(), llm=llm, memory=lag, skip_condense=True)

    async def chat(question):
        return str(await engine.achat(question))

    for question in (QUESTION, OTHER):
        if way == "sync":
            assert str(engine.chat(question)) == "7741."
        elif way == "async":
            assert asyncio.run(chat(question)) == "7741."
        else:
            assert "".join(engine.stream_chat(question).response_gen) == "7741."
    assert [named(messages) for messages in seen] == [[logs[0]], [logs[1]]]
    assert [m.content for m in lag.get_all()] == [QUESTION, "7741.", OTHER, "7741."]


def test_an_image_can_be_asked_about(lag):
    lag.put(user("").model_copy(update={"blocks": [ImageBlock(url="http://x.example/y.png")]}))
    assert named(lag.get()) == []


# On a real model.


@pytest.fixture
def llm(engine):
    return LAGLLM(engine, max_tokens=8, temperature=0)


async def test_an_agents_model_gets_the_kv(lag, memory, logs, llm):
    response = await FunctionAgent(llm=llm, tools=[weather]).run(QUESTION, memory=lag)
    assert response.raw["lag"]["log_ids"] == [logs[0]]
    assert response.raw["lag"]["injected_tokens"] > 0


async def test_an_agents_answer_names_its_run(lag, memory, logs, llm):
    response = await FunctionAgent(llm=llm, tools=[weather]).run(QUESTION, memory=lag)
    run_id = response.raw["lag"]["run_id"]
    assert lag.last_recall["run_id"] == run_id
    memory.feedback(run_id, outcome="failure")
    (failed,) = memory.store.ledger.info(outcomes=["failure"])
    assert failed.trace.id == run_id
    assert memory.store.ledger.run_outcomes(logs[:1]) == {logs[0]: (0, 1)}
    assert llm.complete("Hi.").raw["lag"]["run_id"] is None  # which nobody captures


@pytest.mark.parametrize("way", ["chat", "achat", "stream_chat"])
def test_a_context_engine_uses_no_log_of_a_document_that_changed(memory, engine, way, monkeypatch):
    memory.outcomes = (*memory.outcomes, "incomplete")  # answers are cut off for length
    memory.unjudged_documents = "any"  # each conversation is a thread of its own
    small = Engine(random_model(engine.tokenizer).eval(), engine.tokenizer)
    llm, used = LAGLLM(small, max_tokens=4, temperature=0), []
    retrieve = response.retrieve_context

    def told(*args, **kwargs):
        context = retrieve(*args, **kwargs)
        used.append([log.id for log in context.as_kv])
        return context

    monkeypatch.setattr(response, "retrieve_context", told)

    def chat(text):
        documents = [Document(text=text, id_="lima")]
        made = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(4))
        engine = ContextChatEngine.from_defaults(
            made.as_retriever(), llm=llm, memory=LAGMemory(memory, k=1)
        )
        if way == "chat":
            engine.chat(QUESTION)
        elif way == "achat":
            asyncio.run(engine.achat(QUESTION))
        else:
            list(engine.stream_chat(QUESTION).response_gen)
        memory.flush()
        return used.pop()

    assert chat("The code is 7741.") == []
    (key,) = memory.store.ledger.ids()
    assert memory.get(key)[0].trace.metadata["sources"][0]["documents"] == ["lima"]
    assert chat("The code is 7741.") == [key]
    assert key not in chat("The code is 9006.")


def test_a_context_engines_model_gets_the_kv_and_no_empty_message(
    lag, logs, llm, index, monkeypatch
):
    raws, prompts = [], []
    chat, as_chat = LAGLLM._chat, sys.modules["lag_integrations.llama_index.llm_call"].as_chat

    def kept(self, *args):
        response = chat(self, *args)
        raws.append(response.raw["lag"]["log_ids"])
        return response

    def read(messages):
        prompts.append(as_chat(messages))
        return prompts[-1]

    monkeypatch.setattr(LAGLLM, "_chat", kept)
    monkeypatch.setattr("lag_integrations.llama_index.llm_call.as_chat", read)
    engine = ContextChatEngine.from_defaults(index.as_retriever(), llm=llm, memory=lag)
    engine.chat(QUESTION)
    engine.chat(OTHER)
    assert raws == [[logs[0]], [logs[1]]]
    assert all(step.text.strip() for prompt in prompts for step in prompt)


# Many at once.


async def test_two_tenants_never_mix(tmp_path, embedder):
    with (
        KVLogMemory(tmp_path / "m", namespace="lima", embedder=embedder) as lima,
        KVLogMemory(tmp_path / "m", namespace="quito", embedder=embedder) as quito,
    ):
        ids = {each: added(each, qa(QUESTION, each.namespace))[0] for each in (lima, quito)}
        lags = {each: LAGMemory(each) for each in (lima, quito)}
        lags |= {each: LAGMemory.from_json(lag.to_json()) for each, lag in lags.items()}
        for each, lag in lags.items():
            lag.put(user(QUESTION))
            assert lag.get()[0].additional_kwargs["lag"] == {
                "memory": each.id,
                "log_ids": [ids[each]],
            }


async def test_many_agents_at_once_get_their_own(memory, no_worker):
    cities = [f"city {n}" for n in range(20)]
    questions = [f"What is the code of the vault in {city}?" for city in cities]
    ids = added(
        memory,
        *(
            qa(question, f"It is {city}.", metadata={"city": city})
            for question, city in zip(questions, cities, strict=True)
        ),
    )

    async def run(number):
        llm, seen = fake_llm(call("weather", city="Lima"), "Done.")
        lag = LAGMemory(memory, k=1, where={"city": cities[number]})
        await FunctionAgent(llm=llm, tools=[weather]).run(questions[number], memory=lag)
        return [named(messages) for messages in seen]

    found = await asyncio.gather(*(run(number) for number in range(20)))
    assert found == [[[key], [key]] for key in ids]


async def test_one_memory_may_be_read_by_many_at_once(lag, logs):
    lag.put(user(QUESTION))
    found = await asyncio.gather(*(lag.aget() for _ in range(20)))
    assert all(named(messages) == [logs[0]] for messages in found)
    assert texts(found[0]) == QUESTION


def test_what_llama_index_misses_of_a_bare_memory_says_what_it_takes(memory):
    """An agent given the memory of logs itself is the first mistake that one makes."""
    with pytest.raises(AttributeError, match=r"LAGMemory\(memory\)"):
        SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory).chat("hello")
    with pytest.raises(AttributeError, match=r"KVLogMemoryBlock\(memory\)"):
        Memory.from_defaults(memory_blocks=[memory])
    with pytest.raises(AttributeError, match=r"no attribute 'recal'$"):
        memory.recal("a task")

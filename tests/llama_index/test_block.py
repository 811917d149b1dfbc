"""KVLogMemoryBlock: logs reach the LLM through LlamaIndex's own memory."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.chat_engine import ContextChatEngine, SimpleChatEngine
from llama_index.core.memory import InsertMethod, Memory, StaticMemoryBlock

from lag_integrations import Engine, KVLogMemory
from lag_integrations.errors import StoreError
from lag_integrations.llama_index import (
    LAGLLM,
    KVLogMemoryBlock,
    LAGMemory,
    memory_block,
    settings,
)
from lag_integrations.llama_index import task_recall as recalled
from lag_integrations.llama_index.message_tag import is_carrier
from tests.conftest import qa, random_model
from tests.helpers import added
from tests.llama_index.fake_llm import VAULT, answer, call, fake_llm, named, texts, user

QUESTION = "Which code does the vault in Lima have?"
OTHER = "Tell me what the Ostrava ferry carries."
INSERTS = [InsertMethod.SYSTEM, InsertMethod.USER]


def around(*blocks, **settings):
    return Memory.from_defaults(memory_blocks=list(blocks), **settings)


def weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"Rain in {city}."


def test_it_is_a_block(memory, no_worker):
    assert "BaseMemoryBlock" in {cls.__name__.split("[")[0] for cls in KVLogMemoryBlock.__mro__}
    made = KVLogMemoryBlock(memory)
    assert (made.name, made.priority, made.accept_short_term_memory) == ("similar_runs", 0, True)
    assert KVLogMemoryBlock(memory, name="logs", priority=2).priority == 2
    with pytest.raises(ValueError, match="unique"):
        around(made, KVLogMemoryBlock(memory))
    with pytest.raises(ValueError, match="min_scor"):
        KVLogMemoryBlock(memory, min_scor=1)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        KVLogMemoryBlock(memory, k=-1)
    with pytest.raises(ValueError, match=r"KVLogMemoryBlock\(KVLogMemory"):
        KVLogMemoryBlock(None)
    with pytest.raises(StoreError):
        KVLogMemoryBlock(memory, where={"$nor": 1})
    assert "memory" not in made.model_dump()
    assert copy.deepcopy(around(made)).memory_blocks[0]._memory is memory


async def test_it_names_logs_in_a_message_that_says_nothing(memory, logs):
    made = KVLogMemoryBlock(memory)
    (message,) = await made.aget([user("Hi."), answer("Hello."), user(QUESTION)])
    assert is_carrier(message)
    assert named([message]) == [logs[0]]
    (message,) = await made.aget([user("Sing me a song about trees.")])
    assert named([message]) == []
    assert await made.aget([]) == await made.aget() == await made.aget([answer("Hi.")]) == []


async def test_as_text_it_is_text_that_capture_knows(memory, logs, monkeypatch):
    told = {}
    monkeypatch.setattr(recalled, "note_recalled", told.update)
    made = KVLogMemoryBlock(memory, as_text=True)
    (block,) = await made.aget([user(QUESTION)])
    assert "The code of the vault in Lima is 7741." in block.text
    assert told == {block.text: logs[0]}
    assert await made.aget([user("Sing me a song about trees.")]) == []


async def test_a_task_of_a_session_is_recalled_for_once(memory, logs, asked, monkeypatch):
    made = KVLogMemoryBlock(memory)
    chat = around(made)
    for run in ("1", "2"):  # the user may ask it twice
        monkeypatch.setattr(settings, "open_run", lambda *_, run=run, **__: run)
        question = QUESTION
        await chat.aput(user(question))
        await chat.aget()
        await chat.aget(input=question)
        await chat.aput(answer("7741."))
    assert asked == [QUESTION, QUESTION]
    other = around(made)
    await other.aput(user(QUESTION))
    assert named(await other.aget()) == [logs[0]]
    assert len(asked) == 3


async def test_outside_of_a_run_what_is_deleted_is_gone_at_once(memory, logs):
    made = KVLogMemoryBlock(memory, as_text=True)
    assert await made.aget([user(QUESTION)])
    memory.delete(logs)
    assert await made.aget([user(QUESTION)]) == []


async def test_settings_may_be_changed(memory, logs):
    made = KVLogMemoryBlock(memory)
    made.k = 0
    assert named(await made.aget([user(QUESTION)])) == []


async def test_what_many_sessions_recalled_is_not_kept_for_ever(memory, logs, monkeypatch):
    monkeypatch.setattr(recalled, "_TASKS", 4)
    monkeypatch.setattr(settings, "open_run", lambda *_, **__: "run")
    made = KVLogMemoryBlock(memory)
    for number in range(8):
        await made.aget([user(QUESTION)], session_id=str(number))
    assert len(made._tasks._found) == 4


async def test_turns_that_stand_in_the_prompt_are_not_recalled(memory, logs):
    (own,) = added(memory, qa(QUESTION, "7741, I said.", metadata={"thread_id": "mine"}))
    chat = around(KVLogMemoryBlock(memory, k=1), session_id="mine")
    await chat.aput(user(QUESTION))
    assert named(await chat.aget()) == [own]
    await chat.aput_messages([answer("7741, I said."), user(QUESTION)])
    assert named(await chat.aget()) == [logs[0]]


async def test_ejected_turns_are_recalled_again(memory, no_worker, short):
    await short.aput_messages(turn("My lamp is called Zorbo.", "Noted: Zorbo is your lamp."))
    await short.aput(user("What is my lamp called?"))
    assert named(await short.aget()) == []
    await short.aput_messages(turn("Tell a tale.", "Once.", 40))
    memory.embed_pending()
    await short.aput(user("What is my lamp called?"))
    prompt = await short.aget()
    assert "Zorbo" not in texts(prompt)
    (log,) = memory.get(named(prompt))
    assert log.trace.last_response == "Noted: Zorbo is your lamp."


async def test_runs_are_captured_with_the_session_as_their_thread(memory, logs, monkeypatch):
    opened = []

    def open_run(memory, thread=None, task=None, **_):
        opened.append((memory, thread, task, threading.current_thread()))

    monkeypatch.setattr(settings, "open_run", open_run)
    await around(KVLogMemoryBlock(memory), session_id="s").aget(input=QUESTION)
    await around(KVLogMemoryBlock(memory, capture=False)).aget(input=QUESTION)
    assert opened == [(memory, "s", QUESTION, threading.main_thread())]


def test_a_closed_memory_breaks_no_conversation(memory, logs, caplog):
    llm, seen = fake_llm("Fine.")
    chat = around(KVLogMemoryBlock(memory), token_limit=60, token_flush_size=10)
    memory.close()
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=chat)
    for question in (QUESTION, "word " * 30, "word " * 40):
        assert str(engine.chat(question)) == "Fine."
    assert named(seen[0]) == []
    assert "Nothing is recalled" in caplog.text
    assert "did not become a log" in caplog.text
    assert QUESTION not in caplog.text


# Over the token limit.


async def test_text_is_cut_log_by_log_the_worst_first(memory, logs):
    many = [qa(f"{QUESTION} ({n})", "word " * 60) for n in range(3)]
    added(memory, *many, VAULT)  # the newest comes first
    made = KVLogMemoryBlock(memory, as_text=True, k=3, priority=1)
    content = await made.aget([user(QUESTION)])
    assert len(content) == 3
    assert await made.atruncate(content, 0) == content
    assert await made.atruncate(content, 10) == content[:2]
    assert await made.atruncate(content, 90) == content[:1]
    assert await made.atruncate(content, 10_000) is None
    assert await made.atruncate([], 10) == []

    chat = around(made, token_limit=120)
    await chat.aput(user(QUESTION))
    prompt = texts(await chat.aget())
    assert "[1]" in prompt
    assert "[2]" not in prompt


async def test_a_message_that_says_nothing_takes_no_room_and_stays(memory, logs):
    made = KVLogMemoryBlock(memory, priority=0)
    (carrier,) = await made.aget([user(QUESTION)])
    assert await made.atruncate([carrier], 10) == [carrier]
    chat = around(made, StaticMemoryBlock(static_content="word " * 500, priority=1), token_limit=50)
    await chat.aput(user(QUESTION))
    messages = await chat.aget()
    assert named(messages) == [logs[0]]
    assert chat._estimate_token_count(carrier) < 10
    # With a priority, LlamaIndex removes what cannot be cut: nothing is recalled, nothing breaks.
    chat = around(KVLogMemoryBlock(memory, priority=1), token_limit=5)
    await chat.aput(user(f"{QUESTION} {QUESTION}"))
    assert named(await chat.aget()) is None


# What the short-term memory ejects.


@pytest.fixture
def short(memory):
    """A memory that holds little."""
    return around(KVLogMemoryBlock(memory), token_limit=60, token_flush_size=10, session_id="mine")


def turn(question, response, words=0):
    return [user(question), answer(f"{response} {'word ' * words}".strip())]


async def test_turns_that_are_ejected_become_logs(memory, no_worker, short):
    picture = user("What is this?")
    picture.blocks.append(ImageBlock(url="http://x.example/y.png"))
    steps = [user("How is Lima?"), call("weather", city="Lima"), answer("It rains in Lima.")]
    await short.aput_messages([answer("Hello."), picture, answer("A cat."), *steps])
    await short.aput_messages(turn("Tell a tale.", "Once.", 40))
    memory.embed_pending()
    logs = memory.store.ledger.having({"thread_id": "mine"}).values()
    assert {(log.task, log.last_response) for log in logs} == {
        ("What is this?", "A cat."),
        ("How is Lima?", "It rains in Lima."),
    }
    (log,) = [log for log in logs if log.task == "How is Lima?"]
    assert log.metadata == {"source": "llama_index", "thread_id": "mine"}
    assert [step.role for step in log.messages] == ["user", "assistant", "assistant"]
    assert log.messages[1].tool_calls[0].name == "weather"


async def test_a_turn_that_is_refused_costs_the_others_nothing(tmp_path, embedder, caplog):
    def redact(trace):
        return None if "secret" in trace.task else trace

    with KVLogMemory(tmp_path / "m", embedder=embedder, redact=redact) as memory:
        made = KVLogMemoryBlock(memory)
        await made.aput([*turn("My secret is 1?", "Yes."), *turn("Capital of France?", "Paris.")])
        assert [log.trace.task for log in memory.store.ledger.info()] == ["Capital of France?"]
    assert "did not become a log" in caplog.text


@pytest.mark.parametrize("thread", ["mine", None])
async def test_turns_that_are_logs_already_stay_one(memory, no_worker, short, thread):
    """As captured: with a system message, and the answer without the thoughts before it."""
    metadata = {"thread_id": thread} if thread else {}
    captured = qa("Who are you?", "A parrot.", metadata=metadata)
    system = {"role": "system", "content": "Be short."}
    captured = captured.from_messages(
        [system, *captured.messages], metadata=metadata, outcome="failure"
    )
    if thread:
        memory.add(captured)  # not even embedded
    else:
        added(memory, captured)
    await short.aput_messages(turn("Who are you?", "Thought: I know.\nAnswer: A parrot."))
    await short.aput_messages(turn("Who are they?", "A parrot."))  # another question
    await short.aput_messages(turn("Tell a tale.", "Once.", 40))
    logs = memory.store.ledger.having({"source": "llama_index"}).values()
    assert [log.task for log in logs] == ["Who are they?"]


async def test_what_is_not_a_whole_turn_is_no_log(memory, no_worker):
    made = KVLogMemoryBlock(memory)
    await made.aput([answer("Hello."), user("Hm."), user("Code?"), call("weather", city="Lima")])
    await made.aput([])
    assert memory.store.ledger.count() == 0
    code = user("Result of executing the code given:\n\n42")
    await made.aput([user("What is 6 x 7?"), answer("<execute>6*7</execute>"), code, answer("42.")])
    assert memory.store.ledger.count() == 1


async def test_ejected_turns_can_be_left_alone(memory, no_worker):
    made = KVLogMemoryBlock(memory, accept_short_term_memory=False)
    await made.aput(turn("Who are you?", "A parrot."), from_short_term_memory=True)
    assert memory.store.ledger.count() == 0


# With agents and chat engines.


@pytest.mark.parametrize("insert", INSERTS)
@pytest.mark.parametrize("kind", ["function", "react"])
async def test_agents_get_the_logs_at_each_step(memory, logs, kind, insert):
    chat = around(
        KVLogMemoryBlock(memory), StaticMemoryBlock(static_content="Be kind."), insert_method=insert
    )
    if kind == "function":
        llm, seen = fake_llm(call("weather", city="Lima"), "7741.")
        agent = FunctionAgent(llm=llm, tools=[weather], system_prompt="You help.")
    else:
        step = 'Thought: Look.\nAction: weather\nAction Input: {"city": "Lima"}'
        llm, seen = fake_llm(step, "Thought: I know.\nAnswer: 7741.")
        agent = ReActAgent(llm=llm, tools=[weather], system_prompt="You help.")
    assert str(await agent.run(QUESTION, memory=chat)) == "7741."
    assert [named(messages) for messages in seen] == [[logs[0]], [logs[0]]]
    assert not any(is_carrier(message) for message in await chat.aget_all())


@pytest.mark.parametrize(
    ("kind", "insert", "arrives"),
    [
        ("function", InsertMethod.SYSTEM, True),
        ("function", InsertMethod.USER, True),
        ("react", InsertMethod.SYSTEM, False),  # it has a system message of its own
        ("react", InsertMethod.USER, True),
    ],
)
async def test_agents_get_text(memory, logs, kind, insert, arrives):
    chat = around(KVLogMemoryBlock(memory, as_text=True), insert_method=insert)
    llm, seen = fake_llm("Thought: I know.\nAnswer: 7741.")
    agent = (FunctionAgent if kind == "function" else ReActAgent)(llm=llm, tools=[weather])
    await agent.run(QUESTION, memory=chat)
    assert ("The code of the vault in Lima is 7741." in texts(seen[0])) is arrives
    assert named(seen[0]) is None


@pytest.mark.parametrize("way", ["sync", "async"])
def test_context_engines_get_the_logs(memory, logs, way):
    index = VectorStoreIndex.from_documents(
        [Document(text="Lima is a city.")], embed_model=MockEmbedding(4)
    )
    llm, seen = fake_llm("7741.")
    chat = around(KVLogMemoryBlock(memory))
    engine = ContextChatEngine.from_defaults(index.as_retriever(), llm=llm, memory=chat)
    for question in (QUESTION, OTHER):
        if way == "sync":
            engine.chat(question)
        else:
            asyncio.run(engine.achat(question))
    assert [named(messages) for messages in seen] == [[logs[0]], [logs[1]]]


async def test_it_may_be_in_the_history_of_a_lag_memory(tmp_path, memory, logs, embedder):
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        (key,) = added(other, qa(QUESTION, "1234."))
        lag = LAGMemory(memory, history=around(KVLogMemoryBlock(other, as_text=True)))
        await lag.aput(user(QUESTION))
        messages = await lag.aget()
        assert named(messages) == [logs[0]]
        assert "1234." in texts(messages)
        assert key


# On a real model.


@pytest.mark.parametrize("insert", INSERTS)
@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
async def test_the_model_gets_the_kv_and_no_empty_message(
    memory, logs, engine, monkeypatch, kind, insert
):
    prompts, used = [], []
    translate, chat = memory_block.as_chat, LAGLLM._achat

    def read(messages):
        prompts.append(translate(messages))
        return prompts[-1]

    async def kept(self, *args):
        response = await chat(self, *args)
        used.append(response.raw["lag"]["log_ids"])
        return response

    monkeypatch.setattr("lag_integrations.llama_index.llm_call.as_chat", read)
    monkeypatch.setattr(LAGLLM, "_achat", kept)
    small = Engine(random_model(engine.tokenizer).eval(), engine.tokenizer)
    llm = LAGLLM(small, max_tokens=4, temperature=0)
    blocks = [KVLogMemoryBlock(memory), StaticMemoryBlock(static_content=[TextBlock(text="Hi.")])]
    agent = kind(llm=llm, tools=[weather], streaming=False)
    handler = agent.run(
        QUESTION,
        memory=around(*blocks, insert_method=insert),
        max_iterations=1,
        early_stopping_method="generate",
    )
    await handler
    assert used
    assert all(ids == [logs[0]] for ids in used)
    assert all(step.text.strip() for prompt in prompts for step in prompt)

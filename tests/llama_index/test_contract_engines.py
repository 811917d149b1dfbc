"""What LlamaIndex expects of a query engine, a memory, a memory block and a handler."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.memory import Memory
from llama_index.core.query_engine import (
    CustomQueryEngine,
    MultiStepQueryEngine,
    RouterQueryEngine,
)
from llama_index.core.response_synthesizers import (
    ResponseMode,
    get_response_synthesizer,
)
from llama_index.core.schema import QueryBundle
from llama_index.core.settings import Settings
from llama_index.core.tools import QueryEngineTool

from lag_integrations.llama_index import KVLogMemoryBlock, LAGMemory, LAGQueryEngine
from lag_integrations.memory.results import SearchResult
from lag_integrations.memory.safe_recall import SafeRecall
from tests.conftest import qa
from tests.helpers import added, captured
from tests.llama_index.fake_llm import FirstSelector, answer, index, named, user

VAULT = qa("Which code does the vault in Lima have?", "The code of the vault in Lima is 7741.")


QUESTION = "What is the code of the vault in Lima?"


WAYS = pytest.mark.parametrize("way", ["query", "aquery"])


@pytest.fixture
def lima(memory, puppet, no_worker):
    (key,) = added(memory, VAULT)
    memory.attach(puppet)
    return key


def answered(memory):
    """The logs of answered queries: task, answer, and what helped."""
    return [
        (log.task, log.last_response, log.helped_by)
        for log in captured(memory)
        if log.task != VAULT.task
    ]


async def ask(engine, way, question=QUESTION):
    if way == "query":
        return engine.query(question)
    return await engine.aquery(question)


def test_prompts_are_planned_by_the_models_window(puppet_llm, monkeypatch):
    monkeypatch.setattr(Settings, "_prompt_helper", None)
    synthesizer = get_response_synthesizer(llm=puppet_llm, response_mode=ResponseMode.COMPACT)
    assert synthesizer._prompt_helper.context_window == puppet_llm.metadata.context_window
    assert synthesizer._prompt_helper.num_output == puppet_llm.max_tokens


class Steps(BaseQueryTransform):
    """Asks one after the other, then no more."""

    def __init__(self, *questions):
        self.left = list(questions)

    def _run(self, query_bundle, metadata):
        return QueryBundle(self.left.pop(0) if self.left else "None")

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


@WAYS
@pytest.mark.parametrize("around", [False, True])
async def test_an_engine_of_several_steps(puppet_llm, puppet, memory, lima, way, around):
    puppet.says("Lima.", "7741.", "The code is 7741.")
    inner = index().as_query_engine(llm=puppet_llm)
    engine = MultiStepQueryEngine(
        inner if around else LAGQueryEngine(inner, memory),
        Steps("Which city has the vault?", QUESTION),
        get_response_synthesizer(llm=puppet_llm),
        num_steps=3,
    )
    engine = LAGQueryEngine(engine, memory) if around else engine
    response = await ask(engine, way)
    assert str(response) == "The code is 7741."
    assert [(q, str(a)) for q, a in response.metadata["sub_qa"]] == [
        ("Which city has the vault?", "Lima."),
        (QUESTION, "7741."),
    ]
    if around:
        assert puppet.injected == [1, 1, 1]
        assert response.metadata["lag"]["llm_calls"] == 3
        assert answered(memory) == [(QUESTION, "The code is 7741.", (lima,))]
    else:
        assert puppet.injected[1:] == [1, 0]
        assert [task for task, *_ in answered(memory)] == ["Which city has the vault?", QUESTION]


def tools_of(*engines):
    return [
        QueryEngineTool.from_defaults(engine, name=f"tool{n}", description=f"Tool {n}.")
        for n, engine in enumerate(engines)
    ]


@WAYS
async def test_an_engine_that_asks_all(puppet_llm, puppet, memory, lima, way):
    puppet.says("It is 1.", "It is 2.", "Combined.")
    engines = [LAGQueryEngine(index().as_query_engine(llm=puppet_llm), memory) for _ in range(2)]
    engine = RouterQueryEngine(FirstSelector(2), tools_of(*engines), llm=puppet_llm)
    response = await ask(LAGQueryEngine(engine, memory), way)
    assert str(response) == "Combined."
    assert len(puppet.prompts) == 3
    # Each of the inner ones gives its own, and the outer one to what is asked beside them.
    assert puppet.injected == [1, 1, 1]
    assert response.metadata["lag"]["llm_calls"] == 1
    assert sorted(text for _, text, _ in answered(memory)) == ["Combined.", "It is 1.", "It is 2."]


class Failing(CustomQueryEngine):
    error: Exception

    def custom_query(self, query_str):
        raise self.error


@WAYS
async def test_an_engines_error_is_its_own(puppet_llm, puppet, memory, lima, way):
    error = ConnectionError("c")
    with pytest.raises(type(error)) as raised:
        await ask(LAGQueryEngine(Failing(error=error), memory), way)
    assert raised.value is error
    assert answered(memory) == []
    # And after it, nothing is given that was recalled for it.
    puppet.says("Fine.")
    assert puppet_llm.complete(QUESTION).raw["lag"]["log_ids"] == []


async def test_the_event_loop_goes_on_while_logs_are_recalled(
    puppet_llm, puppet, memory, lima, monkeypatch
):
    loop, search, went_on = asyncio.get_running_loop(), SafeRecall.search, threading.Event()

    def waits_for_the_loop(self, *args, **kwargs):
        loop.call_soon_threadsafe(went_on.set)
        assert went_on.wait(20)
        return search(self, *args, **kwargs)

    monkeypatch.setattr(SafeRecall, "search", waits_for_the_loop)
    puppet.says("It is 7741.")
    await LAGQueryEngine(index().as_query_engine(llm=puppet_llm), memory).aquery(QUESTION)
    assert went_on.is_set()


def test_it_has_the_callback_manager_of_its_engine(puppet_llm, memory):
    inner = index().as_query_engine(llm=puppet_llm)
    inner.callback_manager = CallbackManager([])
    assert LAGQueryEngine(inner, memory).callback_manager is inner.callback_manager
    other = CallbackManager([])
    assert LAGQueryEngine(inner, memory, callback_manager=other).callback_manager is other


PIRATE = "Talk like a pirate."


def chat_engine(kind, llm, lag):
    if kind == "simple":
        return SimpleChatEngine.from_defaults(llm=llm, memory=lag, system_prompt=PIRATE)
    made = {
        "context": ContextChatEngine,
        "condense_plus_context": CondensePlusContextChatEngine,
    }[kind]
    settings = {"skip_condense": True} if kind == "condense_plus_context" else {}
    retriever = index().as_retriever()
    return made.from_defaults(retriever, llm=llm, memory=lag, system_prompt=PIRATE, **settings)


async def chat(engine, way, message):
    """The text of an answer, in its parts."""
    if way == "chat":
        return [str(engine.chat(message))]
    response = await engine.astream_chat(message)
    parts = [part async for part in response.async_response_gen()]
    assert "".join(parts).strip() == str(response)
    return parts


KINDS = ["simple", "context", "condense_plus_context"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["chat", "astream_chat"])
async def test_a_conversation_goes_on(puppet_llm, puppet, memory, lima, kind, way):
    engine = chat_engine(kind, puppet_llm, LAGMemory(memory))
    puppet.says("Ahoy there, mate!")
    parts = await chat(engine, way, "Hello World!")
    assert "".join(parts) == "Ahoy there, mate!"
    assert "stream" not in way or len(parts) > 1
    assert len(engine.chat_history) == 2
    puppet.says("It has none.")
    await chat(engine, way, "What is the capital of the moon?")
    (prompt,) = puppet.prompts
    for text in (PIRATE, "Hello World!", "Ahoy there, mate!", "the capital of the moon?"):
        assert prompt.count(text) == 1
    assert [message.role for message in engine.chat_history] == ["user", "assistant"] * 2
    assert [task for task, *_ in answered(memory)] == [
        "Hello World!",
        "What is the capital of the moon?",
    ]
    engine.reset()
    assert engine.chat_history == []
    puppet.says("It is 7741.")
    await chat(engine, way, QUESTION)
    assert puppet.injected == [1]
    assert "Hello World!" not in puppet.prompts[0]
    assert answered(memory)[-1][1:] == ("It is 7741.", (lima,))


@pytest.mark.parametrize("way", ["chat", "achat"])
async def test_a_question_may_be_a_bundle(puppet_llm, puppet, memory, lima, way):
    engine = chat_engine("context", puppet_llm, LAGMemory(memory))
    puppet.says("It is 7741.")
    response = getattr(engine, way)(QueryBundle(QUESTION))
    assert str(await response if way == "achat" else response) == "It is 7741."
    assert QUESTION in str(engine.chat_history[0])
    assert puppet.injected == [1]
    assert puppet.prompts[0].count("<|im_start|>user") == 1  # what names the logs is no message
    assert answered(memory) == [(QUESTION, "It is 7741.", (lima,))]


def test_a_condensed_question_reaches_an_engine_of_ours(puppet_llm, puppet, memory, lima):
    puppet.says(QUESTION, "It is 7741.")
    inner = LAGQueryEngine(index().as_query_engine(llm=puppet_llm), memory)
    engine = CondenseQuestionChatEngine.from_defaults(
        query_engine=inner,
        chat_history=[user("Is there a vault in Lima?"), answer("There is.")],
        llm=puppet_llm,
    )
    assert str(engine.chat("What is its code?")) == "It is 7741."
    assert "Is there a vault in Lima?" in puppet.prompts[0]
    assert QUESTION in puppet.prompts[1]
    assert puppet.injected == [0, 1]
    assert answered(memory) == [(QUESTION, "It is 7741.", (lima,))]


def test_messages_leave_whole_and_all_are_kept(memory, no_worker):
    lag = LAGMemory.from_defaults(memory, [user("first message")], token_limit=5)
    assert len(lag.get()) == 1
    for _ in range(3):
        lag.put(user("first message"))
    assert len(lag.get()) == 2
    assert len(lag.get_all()) == 4
    lag.put(user("test message"))
    assert lag.get()[-1].content == "test message"
    lag.set([user("first message")])
    assert len(lag.get()) == 1
    with pytest.raises(ValueError, match="Initial token count exceeds"):
        lag.get(initial_token_count=6)
    for again in (LAGMemory.from_dict(lag.to_dict()), LAGMemory.from_json(lag.to_json())):
        assert [message.content for message in again.get()] == ["first message"]
        assert again.history.token_limit == 5


async def test_a_block_is_read_beside_others_and_cancelled_with_them(memory, lima, monkeypatch):
    around = Memory.from_defaults(
        session_id="s", memory_blocks=[KVLogMemoryBlock(memory), KVLogMemoryBlock(memory, name="b")]
    )
    await around.aput(user(QUESTION))
    messages = await around.aget()
    assert named(messages) == [lima]
    begun, cancelled = threading.Event(), threading.Event()

    def slow(self, *args, **kwargs):
        begun.set()
        cancelled.wait(20)
        return SearchResult()

    monkeypatch.setattr(SafeRecall, "search", slow)
    await around.aput(user("Something else?"))
    task = asyncio.create_task(around.aget())
    await asyncio.to_thread(begun.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cancelled.set()


def test_nothing_is_logged_of_what_is_said(puppet_llm, puppet, memory, lima, caplog):
    puppet.says("It is 7741.")
    with caplog.at_level(logging.INFO):
        LAGQueryEngine(index().as_query_engine(llm=puppet_llm), memory).query(QUESTION)
    assert "7741" not in caplog.text
    assert QUESTION not in caplog.text

"""Users who share a model cannot tell what others had read, by no counter."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from llama_index.core.base.llms.types import ChatMessage

from lag_integrations import KVLogMemory
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM
from tests.conftest import qa
from tests.store.model import hash_embedder, tiny_engine

SECRET = "The price is 4417 dollars, and nobody else may know of it."
SYSTEM = "You help the people of Lima with whatever they ask, and you are kind to them."


@pytest.fixture
def engine():
    return tiny_engine()


@pytest.fixture
def open_memory(tmp_path):
    opened = []

    def open_(namespace="default", folder="m"):
        opened.append(KVLogMemory(tmp_path / folder, namespace=namespace, embedder=hash_embedder))
        return opened[-1]

    yield open_
    for memory in opened:
        memory.close()


def reused(model, *messages, way="invoke", **settings) -> int:
    """The prompt tokens that somebody had read before, as an answer says."""
    messages = messages or (HumanMessage(SECRET),)
    model = model.model_copy(update={"temperature": 0, "max_tokens": 2})
    if way == "invoke":
        answer = model.invoke(list(messages), **settings)
    elif way == "ainvoke":
        answer = asyncio.run(model.ainvoke(list(messages), **settings))
    elif way == "stream":
        *_, answer = model.stream(list(messages), **settings)
    else:
        answer, _ = model.batch([list(messages), [HumanMessage("Else.")]], **settings)
    lag, usage = answer.response_metadata["lag"], answer.usage_metadata
    assert usage["input_token_details"]["cache_read"] == lag["reused_tokens"]
    return lag["reused_tokens"]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "batch"])
def test_a_namespace_tells_nothing_of_anothers_prompts(engine, open_memory, way):
    lima = LAGChatModel(engine, memory=open_memory("lima"))
    quito = LAGChatModel(engine, memory=open_memory("quito"))
    elsewhere = LAGChatModel(engine, memory=open_memory("lima", folder="other"))
    bare = LAGChatModel(engine)
    own = len("[user] ") if way == "batch" else 0  # with the other prompt of its batch
    for model in (lima, quito, elsewhere, bare):
        assert reused(model, way=way) <= own
    assert reused(lima, way=way) > 60, "its own it may reuse"


def test_without_a_memory_a_salt_divides_users(engine):
    ada, ben = LAGChatModel(engine, cache_salt="ada"), LAGChatModel(engine, cache_salt="ben")
    assert reused(ada) == 0
    assert reused(ben) == 0
    assert reused(LAGChatModel(engine), cache_salt="cleo") == 0
    assert reused(LAGChatModel(engine), cache_salt="ada") > 60


def test_within_a_namespace_a_salt_divides_users(engine, open_memory):
    model = LAGChatModel(engine, memory=open_memory())
    assert reused(model, cache_salt="ada") == 0
    assert reused(model, cache_salt="ben") == 0
    assert reused(model) == 0
    assert reused(model, cache_salt="ada") > 60


def test_what_is_declared_public_is_shared_and_no_more(engine, open_memory):
    models = [
        LAGChatModel(engine, memory=open_memory(name), share_system=True)
        for name in ("lima", "quito", "arica")
    ]
    system = SystemMessage(SYSTEM)
    head = len(SYSTEM)  # a token a byte
    assert reused(models[0], system, HumanMessage(SECRET)) == 0
    shared = reused(models[1], system, HumanMessage(SECRET))
    assert head <= shared < head + 15, "the system message, and nothing of what was asked"
    assert reused(models[2], system, HumanMessage("The price is 4417.")) == shared
    closed = LAGChatModel(engine, memory=open_memory("cusco"))
    assert reused(closed, system, HumanMessage(SECRET)) == shared, "public is public"


def test_llama_index_tells_nothing_either(engine, open_memory):
    def reused_by(memory):
        llm = LAGLLM(engine, memory=memory, temperature=0, max_tokens=2)
        return llm.chat([ChatMessage(role="user", content=SECRET)]).raw["lag"]["reused_tokens"]

    lima, quito = open_memory("lima"), open_memory("quito")
    assert reused_by(lima) == 0
    assert reused_by(quito) == reused_by(None) == 0
    assert reused_by(lima) > 60


@pytest.mark.parametrize("way", ["delete", "purge", "close"])
def test_what_was_read_is_forgotten_with_the_logs(engine, open_memory, way):
    memory, other = open_memory("lima"), open_memory("quito")
    model, others = LAGChatModel(engine, memory=memory), LAGChatModel(engine, memory=other)
    kept = memory.add(qa("A question", "An answer"))
    assert reused(model) == reused(others) == 0
    if way == "delete":
        memory.delete(kept)
    elif way == "purge":
        memory.purge()
    else:
        memory.close()
        model = LAGChatModel(engine, memory=open_memory("lima"))
    assert reused(model) == 0
    assert reused(others) > 60, "another namespace's stays"


def test_a_captured_run_is_encoded_from_what_was_read(engine, open_memory):
    """Also of a model without a memory of its own: a run is its capturing memory's."""
    memory, other = open_memory("lima"), open_memory("quito")
    model = LAGChatModel(engine, temperature=0, max_tokens=2)
    model.invoke(SECRET, {"callbacks": [memory.callback_handler()]})
    trace = qa(SECRET, "Yes.")
    mine = engine.encodable(trace, cache_salt=memory.cache_salt(engine))
    theirs = engine.encodable(trace, cache_salt=other.cache_salt(engine))
    prefixes = engine._runner.prefixes
    assert prefixes.match_length(mine.token_ids, salt=mine.cache_salt)[0] > 60
    assert prefixes.match_length(theirs.token_ids, salt=theirs.cache_salt)[0] == 0
    (batch, another) = engine.encoder.plan_batches([mine, theirs])
    assert (batch, another) == ([0], [1]), "they are not read together"


def test_who_shares_a_memory_to_recall_from_is_told_nothing_of_others_runs(engine, open_memory):
    shared, ada, ben = map(open_memory, ("shared", "ada", "ben"))
    model = LAGChatModel(engine, memory=shared)

    def asked(tenant):
        return reused(model, config={"callbacks": [tenant.callback_handler()]})

    assert asked(ada) == asked(ben) == reused(model) == 0
    assert asked(ada) > 60
    ada.flush()
    ada.delete(next(iter(ada.store.ledger.ids())))
    assert asked(ada) == 0, "it is forgotten with the run"
    shared.delete(shared.add(qa("A question", "An answer")))
    assert asked(ben) == 0, "and with what the memory recalled for it"


def test_no_caller_can_name_a_memorys_salt(engine, open_memory):
    memory = open_memory()
    assert reused(LAGChatModel(engine, memory=memory)) == 0
    salt = memory.cache_salt(engine)
    assert reused(LAGChatModel(engine, cache_salt=salt)) == 0

"""LAGChatModel and capture, through LangChain's own API."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnablePassthrough
from langchain_core.tools import tool

from lag_integrations import KVLogMemory, packaged
from lag_integrations.engine.encoder import Encoder
from lag_integrations.engine.token_selection import WholeTrace
from lag_integrations.errors import PromptError, SettingsError, StoreError, TraceError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.sources import hash_of
from tests.conftest import qa
from tests.helpers import captured
from tests.langchain.fake_chat_model import FakeChatModel, call

VAULT = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")
QUESTION = "Which code opens the vault in Lima?"


@pytest.fixture
def model(small, memory):
    """Random weights: which tokens it says does not matter, only what it is given."""
    return LAGChatModel(model=small, memory=memory, temperature=0, max_tokens=16)


@pytest.fixture
def real(engine, memory):
    """The real model, whose answers end: a run that is cut off for length is not recalled."""
    return LAGChatModel(model=engine, memory=memory, temperature=0, max_tokens=16)


def logs(memory: KVLogMemory):
    memory.flush()
    return [item.trace for item in memory.recall("anything", k=50, min_score=-1)]


def test_injection_through_the_chat_model_is_exact(engine, embedder, tmp_path):
    """With the whole trace kept, the answer is the one that reading the trace gives."""
    with KVLogMemory(tmp_path / "m", embedder=embedder, selection=WholeTrace()) as memory:
        model = LAGChatModel(
            model=engine, memory=memory, temperature=0, max_tokens=16, placement="after_system"
        )
        _ = model.engine
        key = memory.add(VAULT)
        memory.flush()
        helped = model.invoke(QUESTION)
        turns = [(m.role.replace("user", "human"), m.text) for m in VAULT.messages]
        read = model.invoke([*turns, ("human", QUESTION)], k=0)
    assert helped.content == read.content
    lag = helped.response_metadata["lag"]
    assert lag["log_ids"] == [key]
    cached = helped.usage_metadata["input_token_details"]["cache_read"]
    assert cached == lag["injected_tokens"] + lag["reused_tokens"]
    # The same tokens were in the context; only who computed them differs.
    assert helped.usage_metadata["input_tokens"] == read.usage_metadata["input_tokens"]
    assert read.response_metadata["lag"]["log_ids"] == []


def test_what_was_used_is_visible(model, memory):
    memory.add(VAULT)
    memory.flush()
    answer = model.invoke(QUESTION)
    lag = answer.response_metadata["lag"]
    assert 0.5 < lag["scores"][0] <= 1
    assert set(lag["timings"]) == {"recall", "load", "injection", "time_to_first_token"}
    assert all(seconds > 0 for seconds in lag["timings"].values())
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata["output_tokens"] > 0


def test_stream_and_async_give_what_invoke_gives(model, memory):
    _ = model.engine  # attached, so that the log is encoded before
    memory.add(VAULT)
    memory.flush()
    model.invoke(QUESTION)  # so that all of the following find the prompt read lately
    invoked = model.invoke(QUESTION)

    async def twins():
        chunks = [chunk async for chunk in model.astream(QUESTION)]
        return await model.ainvoke(QUESTION), chunks

    chunks = list(model.stream(QUESTION))
    ainvoked, achunks = asyncio.run(twins())
    for pieces in (chunks, achunks):
        told = [piece for piece in pieces if piece.usage_metadata or piece.chunk_position]
        assert told == [pieces[-1]]
        assert pieces[-1].chunk_position == "last"
        whole = pieces[0]
        for piece in pieces[1:]:
            whole = whole + piece
        assert whole.content == invoked.content
        assert whole.usage_metadata == invoked.usage_metadata
        lag, expected = whole.response_metadata["lag"], invoked.response_metadata["lag"]
        assert lag["log_ids"] == expected["log_ids"]
        assert lag["injected_tokens"] == expected["injected_tokens"]
    assert len(chunks) > 3
    assert ainvoked.content == invoked.content


def test_per_call_settings(model, memory):
    for number in range(3):
        memory.add(qa(f"What is the code of vault {number} in Lima?", f"It is 774{number}."))
    memory.flush()

    def used(**settings):
        return len(model.invoke(QUESTION, **settings).response_metadata["lag"]["log_ids"])

    assert used() == 3
    assert used(k=1) == 1
    assert used(k=0) == 0
    assert used(min_score=0.999) == 0
    assert used(max_tokens=3, repetition_penalty=1.2, top_p=1, temperature=1) == 3
    with pytest.raises(ValueError, match="misspelt"):
        used(misspelt=1)
    with pytest.raises(SettingsError, match="k is -1"):
        used(k=-1)
    with pytest.raises(ValueError, match="temperature is -1"):
        LAGChatModel(model.engine, temperature=-1)
    with pytest.raises(PromptError, match="no message"):
        model.invoke([])
    assert model.invoke(QUESTION, max_tokens=2).usage_metadata["output_tokens"] == 2
    told = model.invoke("Tell me of the sea.", max_tokens=40).content
    stop = told[8:16]  # of several tokens
    answer = model.invoke("Tell me of the sea.", stop=[stop])
    assert answer.content == told[: told.index(stop)]


def test_the_best_log_stands_last(small, memory, monkeypatch):
    memory.attach(small)
    near, far = memory.add(VAULT), memory.add(qa("Code of a vault?", "A vault has a code: 1."))
    memory.flush()
    seen = []
    build = small.requests.build

    def spy(prompt, segments, *args, **kwargs):
        seen.append(segments)
        return build(prompt, segments, *args, **kwargs)

    monkeypatch.setattr(small.requests, "build", spy)
    for best_last in (True, False):
        model = LAGChatModel(model=small, memory=memory, best_last=best_last, max_tokens=1)
        message = model.invoke(QUESTION, min_score=0.2)
        assert message.response_metadata["lag"]["log_ids"] == [near, far]
    best = len(small.encode(VAULT))
    assert len(seen[0][-1]) == best != len(seen[0][0])
    assert len(seen[1][0]) == best


def test_logs_that_do_not_fit_the_window_are_left_out_worst_first(model, memory, monkeypatch):
    near = memory.add(VAULT)
    memory.add(qa("What is the code of the vault in Lima, at length?", "Seven. " * 60))
    memory.flush()
    _ = model.engine
    monkeypatch.setattr(model.engine.positions, "window", 160)
    lag = model.invoke(QUESTION, max_tokens=16).response_metadata["lag"]
    assert lag["log_ids"] == [near]
    assert lag["injected_tokens"] > 0


def test_without_memory_it_is_a_plain_chat_model(small):
    model = LAGChatModel(model=small, temperature=0, max_tokens=8)
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("Say hello.")])
    assert answer.content
    assert answer.response_metadata["lag"]["injected_tokens"] == 0
    assert model.get_num_tokens("Hello world") == 2
    assert model.get_num_tokens_from_messages([HumanMessage("Hello")]) > 5


def test_it_loads_lazily_and_by_path(memory):
    started = time.perf_counter()
    model = LAGChatModel(model=packaged.chat_model(), memory=memory, max_tokens=3)
    assert time.perf_counter() - started < 0.5
    assert model.invoke("Hi").content
    model.close()


def test_an_answer_is_continued(engine):
    model = LAGChatModel(model=engine, temperature=0, max_tokens=6)
    answer = model.invoke([("human", "Capital of France?"), ("ai", "The capital of France is")])
    assert "Paris" in answer.content


def test_a_log_that_cannot_be_used_does_not_cost_the_answer(
    model, memory, no_worker, monkeypatch, caplog
):
    memory.add(VAULT)
    memory.flush()
    _ = model.engine

    def refuse(*_, **settings):
        raise TraceError("no good")

    monkeypatch.setattr(Encoder, "encode_batch", refuse)
    answer = model.invoke(QUESTION)
    assert answer.content
    assert answer.response_metadata["lag"]["log_ids"] == []
    assert "no good" in caplog.text


@pytest.mark.parametrize("broken", ["add_model", "files"])
def test_a_ledger_that_fails_does_not_cost_the_answer(
    small, memory, no_worker, monkeypatch, caplog, broken
):
    memory.add(VAULT)
    memory.embed_pending()

    def fails(*_, **settings):
        raise StoreError("the disk is full")

    owner = memory.store.metadata if broken == "add_model" else memory.store.segments
    monkeypatch.setattr(owner, broken, fails)
    model = LAGChatModel(small, memory=memory, temperature=0, max_tokens=2)
    assert model.invoke(QUESTION).content
    assert "the disk is full" in caplog.text


def test_a_timeout_counts_from_the_call(model, memory, no_worker, monkeypatch):
    memory.add(VAULT)
    memory.embed_pending()
    search = type(memory).search

    def slow(*arguments, **settings):
        time.sleep(0.6)
        return search(*arguments, **settings)

    monkeypatch.setattr(type(memory), "search", slow)
    with pytest.raises(TimeoutError):
        model.invoke(QUESTION, timeout=0.5)


def test_logs_as_text_stand_before_the_question_of_a_list_of_blocks(model, memory):
    memory.add(VAULT)
    memory.flush()
    prompts = []
    text = f"The weather is fine.\n{QUESTION}"
    for content in (text, [{"type": "text", "text": text}]):
        answer = model.invoke(
            [HumanMessage(content)], question=QUESTION, logs_as_text=True, min_score=-1
        )
        prompts.append(answer.usage_metadata["input_tokens"])
    assert prompts[0] == prompts[1]


# Capture


def test_a_log_knows_what_helped_it_and_holds_nothing_recalled(real, memory):
    key = memory.add(VAULT)
    memory.flush()
    real.invoke(QUESTION, {"callbacks": [memory.callback_handler()]})
    (log,) = [log for log in logs(memory) if log.task == QUESTION]
    assert log.helped_by == (key,)
    assert [message.role for message in log.messages] == ["user", "assistant"]


def test_capture_encodes_nothing_in_the_run(real, memory, monkeypatch):
    encoding_threads = set()
    encoding = threading.Event()
    encode = Encoder.encode_batch

    def spy(*args, **kwargs):
        encoding_threads.add(threading.current_thread().name)
        encoding.set()
        return encode(*args, **kwargs)

    monkeypatch.setattr(Encoder, "encode_batch", spy)
    real.invoke("Hi", {"callbacks": [memory.callback_handler()]})
    assert encoding.wait(60)
    assert encoding_threads == {"lag-memory"}


def test_langchains_cache_does_not_answer_for_a_memory(model, memory):
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import get_llm_cache, set_llm_cache

    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    try:
        assert model.invoke(QUESTION).response_metadata["lag"]["log_ids"] == []
        memory.add(VAULT)
        memory.flush()
        assert model.invoke(QUESTION).response_metadata["lag"]["log_ids"] != []
    finally:
        set_llm_cache(before)


def test_a_log_without_a_segment_can_be_given_as_text(engine, memory):
    model = LAGChatModel(
        engine, memory=memory, temperature=0, max_tokens=16, missing_segments="text"
    )
    key = memory.add(VAULT)
    while not memory.recall("Which code opens the vault in Lima?"):
        pass  # embedded by the worker; no model is attached that could encode it
    read = model.invoke("Which code opens the vault in Lima?")
    assert "7741" in read.content
    used = read.response_metadata["lag"]
    assert (used["log_ids"], used["read_as_text"], used["injected_tokens"]) == ([key], [key], 0)
    memory.flush()  # by now a model is attached
    injected = model.invoke("Which code opens the vault in Lima?")
    used = injected.response_metadata["lag"]
    assert (used["log_ids"], used["read_as_text"]) == ([key], [])
    assert used["injected_tokens"] > 0


def test_a_deleted_log_leaves_the_prefix_cache_too(model, memory):
    prefixes = model.engine._runner.prefixes
    prefixes.clear()  # of what other tests asked
    key = memory.add(VAULT)
    memory.flush()
    model.invoke(QUESTION)
    assert any(entry.watched for entry in prefixes._entries.values())
    memory.delete(key)
    gc.collect()
    assert not any(entry.watched for entry in prefixes._entries.values())


@pytest.fixture
def quick(small, memory):
    return LAGChatModel(small, memory=memory, temperature=0, max_tokens=4)


def test_a_turn_that_stands_in_the_prompt_is_not_recalled(quick, memory):
    other, key = memory.add(qa("Code of the vault in Lima?", "It is 7741.")), memory.add(VAULT)
    memory.flush()

    def used(*history):
        answer = quick.invoke([*history, HumanMessage(QUESTION)], k=1)
        return answer.response_metadata["lag"]["log_ids"]

    asked, said = HumanMessage(VAULT.task), AIMessage(VAULT.last_response)
    first = used()
    assert first == [key]
    assert used(asked, said) == [other]
    assert used(asked, AIMessage("It is 1234.")) == used(said) == [key]


class Cabinet(BaseRetriever):
    """Finds what it holds."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


LIMA = [
    Document("The vault in Lima opens with the code 7741.", metadata={"source": "lima.txt"}),
    Document("Lima is a city.", metadata={"source": "cities.txt"}, id="n1"),
]
CHANGED = [Document("The vault opens with the code 9006.", metadata={"source": "lima.txt"})]


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_a_log_of_a_document_that_changed_is_not_recalled(quick, memory, way):
    config = {"callbacks": [memory.callback_handler()]}
    prompt = ChatPromptTemplate.from_template("{context}\n{question}")

    def used(documents, config):
        found = Cabinet(documents=documents)
        context = {"context": found, "question": RunnablePassthrough()}
        return asyncio.run(answer(context | prompt | quick, config))["log_ids"]

    async def answer(chain, config):
        if way == "invoke":
            message = chain.invoke(QUESTION, config)
        elif way == "ainvoke":
            message = await chain.ainvoke(QUESTION, config)
        elif way == "stream":
            message = list(chain.stream(QUESTION, config))[-1]
        else:
            message = [part async for part in chain.astream(QUESTION, config)][-1]
        memory.flush()
        return message.response_metadata["lag"]

    assert used(LIMA, config) == []
    (key,) = memory.store.ledger.ids()
    memory.feedback(key, outcome="success")  # it was cut off for length
    sources = memory.get(key)[0].trace.metadata["sources"]
    assert [(source["id"], source["documents"]) for source in sources] == [
        (None, ["lima.txt"]),
        ("n1", ["cities.txt"]),
    ]
    assert used(LIMA, {}) == [key]
    assert key not in used(CHANGED, config)


def test_documents_that_a_tool_returns_are_sources(memory, no_worker):
    @tool(response_format="content_and_artifact")
    def search(query: str):
        """Search."""
        return "Found.", [*LIMA, "no document"]

    talker = FakeChatModel(call("search", query="x"), "7741.")
    config = {"callbacks": [memory.callback_handler()]}
    create_agent(talker, [search]).invoke({"messages": QUESTION}, config)
    (trace,) = captured(memory)
    assert [source["hash"] for source in trace.metadata["sources"]] == [
        hash_of(document.page_content) for document in LIMA
    ]

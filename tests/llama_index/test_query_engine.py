"""LAGQueryEngine: logs reach the engine's LLM calls, and answered queries become logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    CustomQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import LLMSingleSelector, PydanticSingleSelector
from llama_index.core.tools import QueryEngineTool

from lag_integrations import Engine, KVLogMemory
from lag_integrations.errors import StoreError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM, LAGQueryEngine
from lag_integrations.llama_index.tag import tagged
from lag_integrations.prompt import around_logs
from tests.conftest import qa, random_model
from tests.llama_index.choosers import Asks, Selects

MODES = ["compact", "refine", "tree_summarize", "accumulate", "simple_summarize"]
WAYS = ["sync", "async", "sync stream", "async stream"]
AROUND = ["plain", "router", "sub-question"]
QUESTION = "What is the code of the vault in Lima?"
VAULT = qa("Which code does the vault in Lima have?", "The code of the vault in Lima is 7741.")
TEXTS = ["Lima is a city.", "A vault needs a code."]
LOGS_BEGIN, LOGS_END = around_logs(text_before=True)


@pytest.fixture(scope="module")
def small(engine) -> Engine:
    """Random weights: which tokens it says does not matter here, only what it is given."""
    return Engine(random_model(engine.tokenizer).eval(), engine.tokenizer)


@pytest.fixture
def llm(small) -> LAGLLM:
    return LAGLLM(small, max_tokens=4, temperature=0)


@pytest.fixture(scope="module")
def index():
    documents = [Document(text=text) for text in TEXTS]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(4))


@pytest.fixture
def lima(memory, small):
    """A memory with one log, encoded for the small model."""
    key = memory.add(VAULT)
    memory.attach(small)
    memory.flush()
    return key


def halves(question):
    return [f"{question} Part {part}." for part in (1, 2)]


def around(kind, engine, llm, streaming) -> BaseQueryEngine:
    if kind == "plain":
        return engine
    tool = QueryEngineTool.from_defaults(engine, name="documents", description="Documents.")
    if kind == "router":
        return RouterQueryEngine(Selects(1), [tool], llm=llm)
    synthesizer = get_response_synthesizer(llm=llm, streaming=streaming)
    return SubQuestionQueryEngine(Asks(halves), synthesizer, [tool], verbose=False, use_async=False)


def ask(engine, way, question=QUESTION):
    """The response, read to its end, and its text."""

    async def later():
        response = await engine.aquery(question)
        if not isinstance(response, AsyncStreamingResponse):
            return response, str(response)
        parts = [part async for part in response.async_response_gen()]
        return response, "".join(parts)

    if way.startswith("async"):
        return asyncio.run(later())
    response = engine.query(question)
    if isinstance(response, StreamingResponse):
        return response, "".join(response.response_gen)
    return response, str(response)


def all_logs(memory):
    return [log.log for log in memory.get(memory.store.ledger.ids())]


def logs(memory):
    return {log.task: log for log in all_logs(memory)}


TABLE = [
    (mode, way, kind)
    for mode in MODES
    for way in WAYS
    for kind in AROUND
    if mode != "accumulate" or not way.endswith("stream")  # LlamaIndex refuses to stream it
]


@pytest.mark.parametrize(("mode", "way", "kind"), TABLE)
def test_logs_are_injected_and_queries_captured(mode, way, kind, index, llm, memory, lima):
    streaming = way.endswith("stream")
    inner = index.as_query_engine(llm=llm, response_mode=mode, streaming=streaming)
    engine = LAGQueryEngine(around(kind, inner, llm, streaming), memory)
    response, text = ask(engine, way)
    length = len(memory.segments(memory.get(lima))[0])
    lag = response.metadata["lag"]
    assert lag["recalled"] == lag["log_ids"] == [lima]
    assert lag["scores"][0] > 0.8
    assert lag["llm_calls"] >= 1
    assert lag["injected_tokens"] == lag["llm_calls"] * length
    cached = lag["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == lag["injected_tokens"] + lag["reused_tokens"]
    log = logs(memory)[QUESTION]
    assert len(logs(memory)) == 2
    assert log.last_response.strip() == text.strip()
    assert log.helped_by == (lima,)
    assert log.id == lag["run_id"]
    nodes = {node.node.node_id for node in response.source_nodes}
    sources = {source["node_id"] for source in log.metadata["sources"]}
    assert sources == nodes
    assert nodes <= set(response.metadata)  # what LlamaIndex says of them
    assert any(TEXTS[0] in message.text for message in log.messages)


@pytest.mark.parametrize("kind", ["router", "sub-question"])
@pytest.mark.parametrize("way", WAYS)
def test_it_works_within_other_engines(way, kind, index, llm, memory, lima):
    streaming = way.endswith("stream")
    inner = LAGQueryEngine(index.as_query_engine(llm=llm, streaming=streaming), memory)
    response, text = ask(around(kind, inner, llm, streaming), way)
    found = logs(memory)
    if kind == "router":
        assert response.metadata["lag"]["log_ids"] == [lima]
        assert "selector_result" in response.metadata
        assert found[QUESTION].last_response.strip() == text.strip()
    else:
        for part in (1, 2):
            assert found[f"{QUESTION} Part {part}."].helped_by[0] == lima
    assert len(found) == (2 if kind == "router" else 3)


def test_what_cannot_be_streamed_is_refused_as_ever(index, llm, memory, lima):
    engine = index.as_query_engine(llm=llm, response_mode="accumulate", streaming=True)
    with pytest.raises(ValueError, match="stream"):
        LAGQueryEngine(engine, memory).query(QUESTION)
    assert len(logs(memory)) == 1


@pytest.mark.parametrize("mode", ["compact", "tree_summarize"])
def test_a_stream_can_be_read_on_another_thread(mode, index, llm, memory, lima):
    engine = index.as_query_engine(llm=llm, response_mode=mode, streaming=True)
    response = LAGQueryEngine(engine, memory).query(QUESTION)
    assert response.metadata["lag"]["llm_calls"] == 0
    thread = threading.Thread(target=lambda: str(response))
    thread.start()
    thread.join()
    assert response.metadata["lag"]["log_ids"] == [lima]
    assert logs(memory)[QUESTION].last_response.strip() == str(response).strip()


def test_an_async_stream_can_be_read_in_another_task(index, llm, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm, streaming=True), memory)

    async def read(response):
        return "".join([part async for part in response.async_response_gen()])

    async def run():
        responses = await asyncio.gather(*(engine.aquery(QUESTION) for _ in range(2)))
        return responses, await asyncio.gather(*map(read, responses))

    responses, (one, other) = asyncio.run(run())
    assert one == other
    assert all(response.metadata["lag"]["log_ids"] == [lima] for response in responses)


def test_after_a_stream_nothing_is_given(index, llm, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm, streaming=True), memory)
    stream = engine.query(QUESTION).response_gen
    next(stream)
    assert llm.complete(QUESTION).raw["lag"]["log_ids"] == []
    list(stream)
    assert llm.complete(QUESTION).raw["lag"]["log_ids"] == []


@pytest.mark.parametrize("how", ["closed", "dropped", "never read"])
def test_a_stream_that_is_left_is_abandoned(how, index, small, memory, lima):
    llm = LAGLLM(small, max_tokens=20, temperature=0)
    engine = LAGQueryEngine(index.as_query_engine(llm=llm, streaming=True), memory)
    response = engine.query(QUESTION)
    while how != "never read" and not next(response.response_gen).strip():
        pass
    if how == "closed":
        response.response_gen.close()
    del response
    gc.collect()
    if how == "never read":  # no LLM was asked
        assert len(logs(memory)) == 1
    else:
        until = time.monotonic() + 10
        while QUESTION not in logs(memory) and time.monotonic() < until:
            time.sleep(0.01)
        log = logs(memory)[QUESTION]
        assert log.metadata["abandoned"] is True
        assert log.outcome == "unknown"


def test_many_queries_at_once(index, small, memory, lima):
    llm = LAGLLM(small, max_tokens=12, temperature=0)
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory, k=1, min_score=-1)
    keys = [lima, *(memory.add(qa(f"Who is number {n}?", f"It is {n}.")) for n in range(20))]
    memory.flush()
    questions = [f"Who is number {n}?" for n in range(20)]
    alone = LAGQueryEngine(index.as_query_engine(llm=llm), memory, k=1, min_score=-1, capture=False)
    expected = [alone.query(question) for question in questions]
    assert len(logs(memory)) == len(keys)

    async def together():
        return await asyncio.gather(*map(engine.aquery, questions))

    answers = asyncio.run(together())
    assert [str(answer) for answer in answers] == [str(answer) for answer in expected]
    assert len({str(answer) for answer in answers}) > 5
    runs = {log.id: log for log in all_logs(memory)}
    for question, answer, before in zip(questions, answers, expected, strict=True):
        lag = answer.metadata["lag"]
        assert lag["log_ids"] == before.metadata["lag"]["log_ids"]
        log = runs[lag["run_id"]]
        assert log.task == question
        assert log.last_response == str(answer)
        others = [other for other in questions if other != question]
        text = "\n".join(message.text for message in log.messages)
        assert question in text
        assert not any(other in text for other in others)


def test_selectors_and_question_generators_get_no_logs(index, small, memory, lima, monkeypatch):
    llm = LAGLLM(small, max_tokens=60, temperature=0)
    given = []
    request = small.request

    def seen(chat, segments, **settings):
        given.append((chat[-1].text, len(segments)))
        return request(chat, segments, **settings)

    monkeypatch.setattr(small, "request", seen)
    tools = [
        QueryEngineTool.from_defaults(
            index.as_query_engine(llm=LAGLLM(small, max_tokens=4)), name=name, description=name
        )
        for name in ("ships", "vaults")
    ]
    for selector in (
        PydanticSingleSelector.from_defaults(llm=llm),
        LLMSingleSelector.from_defaults(llm=llm),
    ):
        given.clear()
        engine = LAGQueryEngine(RouterQueryEngine(selector, tools, llm=llm), memory)
        with contextlib.suppress(ValueError, IndexError):  # random weights choose at random
            engine.query(QUESTION)
        chosen = [count for text, count in given if "choices" in text]
        answered = [count for text, count in given if "choices" not in text]
        assert chosen
        assert set(chosen) == {0}
        assert set(answered) <= {1}


def test_the_llms_own_memory_stays_out(index, small, memory, lima, tmp_path, embedder):
    with KVLogMemory(tmp_path / "own", embedder=embedder, min_score=-1) as own:
        own.add(qa("Context information is below.", "Indeed it is."))
        own.flush()
        llm = LAGLLM(small, memory=own, max_tokens=4)
        engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
        assert engine.query(QUESTION).metadata["lag"]["log_ids"] == [lima]
        unrelated = LAGQueryEngine(index.as_query_engine(llm=llm), memory, min_score=0.99)
        lag = unrelated.query("Who wrote the song?").metadata["lag"]
        assert (lag["recalled"], lag["log_ids"], lag["injected_tokens"]) == ([], [], 0)


@pytest.mark.parametrize("as_text", [False, True])
def test_logs_stand_next_to_the_question_not_before_the_documents(
    as_text, index, llm, memory, lima, monkeypatch
):
    requests = []
    start = llm.engine.start
    monkeypatch.setattr(llm.engine, "start", lambda *a: requests.append(a[0]) or start(*a))
    LAGQueryEngine(index.as_query_engine(llm=llm), memory, as_text=as_text).query(QUESTION)
    (request,) = requests
    prompt, split = request.prompt_ids, request.split
    decode = llm.engine.tokenizer.decode
    if as_text:
        text = decode(prompt)
        assert f"{LOGS_BEGIN}{VAULT.last_response}{LOGS_END}Query: {QUESTION}" in text
    else:
        assert TEXTS[0] in decode(prompt[:split])
        assert decode(prompt[split:]).startswith(f"{LOGS_END}Query: {QUESTION}")


def test_logs_as_text(index, llm, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory, as_text=True)
    plain = index.as_query_engine(llm=llm)
    lag = engine.query(QUESTION).metadata["lag"]
    assert lag["log_ids"] == lag["read_as_text"] == [lima]
    assert lag["injected_tokens"] == 0
    bare = LAGQueryEngine(plain, memory, k=0).query(QUESTION).metadata["lag"]
    more = lag["usage"]["prompt_tokens"] - bare["usage"]["prompt_tokens"]
    given = f"{LOGS_BEGIN}{VAULT.last_response}{LOGS_END}"
    assert 0 <= more - llm.engine.count_text(given) < 4


def test_an_llm_that_is_not_ours(index, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=MockLLM(max_tokens=3)), memory)
    response = engine.query(QUESTION)
    lag = response.metadata["lag"]
    assert (lag["recalled"], lag["log_ids"], lag["llm_calls"]) == ([lima], [], 0)
    assert logs(memory)[QUESTION].last_response == str(response)
    assert logs(memory)[QUESTION].helped_by == ()


def test_without_nodes_nothing_is_said_or_captured(llm, memory, lima):
    empty = VectorStoreIndex([], embed_model=MockEmbedding(4))
    for streaming in (False, True):
        engine = LAGQueryEngine(empty.as_query_engine(llm=llm, streaming=streaming), memory)
        response = engine.query(QUESTION)
        assert str(response) == "Empty Response"
        assert response.metadata["lag"]["recalled"] == [lima]
        assert response.metadata["lag"]["llm_calls"] == 0
    assert len(logs(memory)) == 1


def test_a_memory_that_fails_costs_no_answer(index, llm, tmp_path, embedder, caplog):
    memory = KVLogMemory(tmp_path / "m", embedder=embedder)
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    memory.close()
    assert str(engine.query(QUESTION))
    assert "Nothing is recalled" in caplog.text
    assert QUESTION not in caplog.text


def test_a_filter_that_is_wrong_is_refused_at_once(index, llm, memory):
    with pytest.raises(StoreError):
        LAGQueryEngine(index.as_query_engine(llm=llm), memory, where={"$nonsense": 1})


def test_retrieve_and_synthesize(index, llm, memory, lima):
    bundle = QueryBundle(QUESTION)
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory, capture=False)
    nodes = engine.retrieve(bundle)
    assert {node.text for node in nodes} == set(TEXTS)
    answers = [engine.synthesize(bundle, nodes), asyncio.run(engine.asynthesize(bundle, nodes))]
    for answer in answers:
        assert answer.metadata["lag"]["log_ids"] == [lima]
    assert str(answers[0]) == str(answers[1])
    assert len(logs(memory)) == 1
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    run_id = engine.synthesize(bundle, nodes).metadata["lag"]["run_id"]
    assert logs(memory)[QUESTION].id == run_id


class Twice(CustomQueryEngine):
    """Asks its LLM itself, and another engine of another memory."""

    llm: LAGLLM
    other: BaseQueryEngine

    def custom_query(self, query_str: str):
        self.llm.complete("Anything.")
        response = self.other.query("Who is number 1?")
        self.llm.complete("More.")
        return response


def test_each_engine_has_its_own_memory(index, small, llm, memory, lima, tmp_path, embedder):
    with KVLogMemory(tmp_path / "other", embedder=embedder) as other:
        key = other.add(qa("Who is number 1?", "It is Ann."))
        other.flush()
        inner = LAGQueryEngine(index.as_query_engine(llm=llm), other)
        engine = LAGQueryEngine(Twice(llm=llm, other=inner), memory)
        lag = engine.query(QUESTION).metadata["lag"]
        assert lag["log_ids"] == [lima]
        assert lag["llm_calls"] == 2
        assert other.recall("Who is number 1?")[0].id
        (log,) = [log for log in all_logs(other) if log.helped_by]
        assert log.helped_by == (key,)
        assert set(logs(memory)) == {VAULT.task, QUESTION}
        assert "Ann" not in "".join(message.text for message in logs(memory)[QUESTION].messages)


def test_a_query_that_is_rewritten_is_so_without_logs(index, llm, memory, lima, monkeypatch):
    given = []
    request = llm.engine.request
    monkeypatch.setattr(
        llm.engine,
        "request",
        lambda chat, segments, **k: given.append(len(segments)) or request(chat, segments, **k),
    )
    engine = TransformQueryEngine(index.as_query_engine(llm=llm), HyDEQueryTransform(llm=llm))
    LAGQueryEngine(engine, memory).query(QUESTION)
    assert given == [0, 1]


def test_reports_of_engines_within_are_kept(index, llm, memory, lima):
    inner = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    lag = LAGQueryEngine(inner, memory).query(QUESTION).metadata["lag"]
    assert lag["log_ids"] == []
    assert lag["within"]["log_ids"] == [lima]
    assert lag["within"]["run_id"] != lag["run_id"]


def test_settings_of_a_call_win(llm, memory, lima):
    message = tagged(ChatMessage(role="user", content="Hi."), memory, [lima])
    assert llm.chat([message]).raw["lag"]["log_ids"] == [lima]
    assert llm.chat([message], k=0).raw["lag"]["log_ids"] == []
    assert llm.chat([message], kv_log_ids=[]).raw["lag"]["log_ids"] == []
    assert llm.chat([message], kv_log_ids=[lima]).raw["lag"]["log_ids"] == [lima]


def test_a_documents_own_log_id_is_no_log(llm, memory):
    text = "The server in Lima crashed at noon, and nobody knows why."
    document = Document(text=text, metadata={"log_id": "srv-17"})
    index = VectorStoreIndex.from_documents([document], embed_model=MockEmbedding(4))
    LAGQueryEngine(index.as_query_engine(llm=llm), memory).query(QUESTION)
    assert any(text in message.text for message in logs(memory)[QUESTION].messages)
    assert logs(memory)[QUESTION].helped_by == ()


def test_prompts_of_the_engine_can_be_seen_and_changed(index, llm, memory):
    inner = index.as_query_engine(llm=llm)
    engine = LAGQueryEngine(inner, memory)
    assert engine.get_prompts() == inner.get_prompts()
    name = "response_synthesizer:text_qa_template"
    engine.update_prompts({name: PromptTemplate("{context_str} {query_str}")})
    assert inner.get_prompts()[name].template == "{context_str} {query_str}"


def test_it_is_a_query_engine(index, llm, memory):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory, capture=False)
    assert "BaseQueryEngine" in [cls.__name__ for cls in LAGQueryEngine.__mro__]
    assert engine.callback_manager is not None
    tool = QueryEngineTool.from_defaults(engine, name="documents", description="Documents.")
    output = tool(QUESTION)
    assert output.raw_output.metadata["lag"]["llm_calls"] == 1
    assert output.content == str(output.raw_output)
    assert asyncio.run(tool.acall(QUESTION)).content == output.content


def test_logs_cross_the_frameworks(index, small, llm, memory):
    model = LAGChatModel(small, memory=memory, max_tokens=4, temperature=0)
    asked = "What is the colour of the vault in Quito?"
    model.invoke(asked, {"callbacks": [memory.callback_handler()]})
    memory.flush()
    (of_langchain,) = memory.store.ledger.ids()
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    lag = engine.query(f"{asked} Tell me.").metadata["lag"]
    assert lag["log_ids"] == [of_langchain]
    assert lag["injected_tokens"] > 0
    memory.flush()
    (of_llama_index,) = set(memory.store.ledger.ids()) - {of_langchain}
    used = model.invoke(f"{asked} Tell me.").response_metadata["lag"]
    assert of_llama_index in used["log_ids"]
    assert memory.get(of_llama_index)[0].log.metadata["source"] == "llama_index"


def test_feedback_names_the_run(index, llm, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    run_id = engine.query(QUESTION).metadata["lag"]["run_id"]
    memory.feedback(run_id, outcome="failure")
    assert logs(memory)[QUESTION].outcome == "failure"

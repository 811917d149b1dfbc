"""LAGQueryEngine: logs reach the engine's LLM calls, and answered queries become logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

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

from lag_integrations import KVLogMemory
from lag_integrations.engine.log_texts import around_logs
from lag_integrations.errors import SettingsError, StoreError
from lag_integrations.langchain import LAGChatModel
from lag_integrations.llama_index import LAGLLM, LAGMemory, LAGQueryEngine
from lag_integrations.llama_index.capture.handlers import tracker
from lag_integrations.llama_index.capture.messages import node_sources
from lag_integrations.llama_index.message_tag import tagged
from tests.conftest import qa
from tests.llama_index.fake_llm import FirstSelector, FixedQuestions

MODES = ["compact", "refine", "tree_summarize", "accumulate", "simple_summarize"]
WAYS = ["sync", "async", "sync stream", "async stream"]
AROUND = ["plain", "router", "sub-question"]
QUESTION = "What is the code of the vault in Lima?"
VAULT = qa("Which code does the vault in Lima have?", "The code of the vault in Lima is 7741.")
TEXTS = ["Lima is a city.", "A vault needs a code."]
LOGS_BEGIN, LOGS_END = around_logs(text_before=True)


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
        return RouterQueryEngine(FirstSelector(1), [tool], llm=llm)
    synthesizer = get_response_synthesizer(llm=llm, streaming=streaming)
    return SubQuestionQueryEngine(
        FixedQuestions(halves), synthesizer, [tool], verbose=False, use_async=False
    )


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
    return [log.trace for log in memory.get(memory.store.ledger.ids())]


def logs(memory):
    return {log.task: log for log in all_logs(memory)}


TABLE = [
    (mode, way, kind)
    for mode in MODES
    for way in WAYS
    for kind in AROUND
    if mode != "accumulate" or not way.endswith("stream")  # LlamaIndex refuses to stream it
    # Each mode in two ways, each way with one mode; routers and sub-questions with that mode.
    if mode == "compact" or (kind == "plain" and way in ("sync", "async stream"))
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
    sources = {source["id"] for source in log.metadata["sources"]}
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
        tracker.recorder.wait()
        log = logs(memory)[QUESTION]
        assert log.metadata["abandoned"] is True
        assert log.outcome == "incomplete"


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
    built = []  # prompts, and how many logs they have
    build = small.requests.build

    def noted(prompt, segments, *args, **settings):
        built.append((prompt.text, len(segments)))
        return build(prompt, segments, *args, **settings)

    monkeypatch.setattr(small.requests, "build", noted)
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
        built.clear()
        engine = LAGQueryEngine(RouterQueryEngine(selector, tools, llm=llm), memory)
        with contextlib.suppress(ValueError, IndexError):  # random weights choose at random
            engine.query(QUESTION)
        chosen = [count for text, count in built if "choices" in text]
        answered = [count for text, count in built if "choices" not in text]
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
    assert 0 <= more - len(llm.engine.tokens_of(given)) < 4


@pytest.mark.parametrize("way", WAYS)
def test_the_nearest_miss_is_told(way, index, llm, memory, lima):
    inner = index.as_query_engine(llm=llm, streaming=way.endswith("stream"))

    def lag(**settings):
        response, _ = ask(LAGQueryEngine(inner, memory, capture=False, **settings), way)
        return response.metadata["lag"]

    strict, usual = lag(min_score=0.99), lag()
    assert (strict["recalled"], strict["log_ids"]) == ([], [])
    assert strict["nearest_miss"]["log_id"] == lima
    assert strict["nearest_miss"]["score"] == usual["scores"][0]
    assert usual["nearest_miss"] is None


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


def test_what_is_wrong_is_refused_at_once(index, llm, memory):
    engine = index.as_query_engine(llm=llm)
    with pytest.raises(StoreError):
        LAGQueryEngine(engine, memory, where={"$nonsense": 1})
    with pytest.raises(SettingsError, match="k is -1"):
        LAGQueryEngine(engine, memory, k=-1)
    with pytest.raises(SettingsError, match=r"memory=KVLogMemory\("):
        LAGQueryEngine(engine, memory=LAGMemory(memory))
    with pytest.raises(SettingsError, match=r"index\.as_query_engine\(\)"):
        LAGQueryEngine(index, memory)


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
    """FixedQuestions its LLM itself, and another engine of another memory."""

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
    injected, build = [], llm.engine.requests.build

    def noted(prompt, segments, *args, **settings):
        injected.append(len(segments))
        return build(prompt, segments, *args, **settings)

    monkeypatch.setattr(llm.engine.requests, "build", noted)
    engine = TransformQueryEngine(index.as_query_engine(llm=llm), HyDEQueryTransform(llm=llm))
    LAGQueryEngine(engine, memory).query(QUESTION)
    assert injected == [0, 1]


def test_reports_of_engines_within_are_kept(index, llm, memory, lima):
    inner = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    lag = LAGQueryEngine(inner, memory).query(QUESTION).metadata["lag"]
    assert lag["log_ids"] == []
    (within,) = lag["within"]
    assert within["log_ids"] == [lima]
    assert within["run_id"] != lag["run_id"]


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("use_async", [False, True])
def test_reports_of_sub_questions_are_within_that_of_the_question(
    way, use_async, index, llm, memory, lima
):
    inner = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    tool = QueryEngineTool.from_defaults(inner, name="documents", description="Documents.")
    synthesizer = get_response_synthesizer(llm=llm)
    asks = SubQuestionQueryEngine(
        FixedQuestions(halves), synthesizer, [tool], verbose=False, use_async=use_async
    )
    response, _ = ask(LAGQueryEngine(asks, memory), way)
    lag = response.metadata["lag"]
    assert [each["log_ids"] for each in lag["within"]] == [[lima]] * 2
    runs = {log.id: log.task for log in all_logs(memory)}
    assert {runs[each["run_id"]] for each in lag["within"]} == set(halves(QUESTION))
    assert runs[lag["run_id"]] == QUESTION


# Documents that change.


LIMA = "The vault in Lima opens with the code 7741."
NEW = "The vault in Lima opens with the code 9006."
KINDS = ["doc id", "file", "new doc id, new file"]


def filed(text, kind="doc id", version=0):
    if kind == "doc id":
        return [Document(text=text, id_="lima")]
    name = "/lima.txt" if kind == "file" else f"/lima-{version}.txt"
    return [Document(text=text, metadata={"file_path": name})]


def documents(texts):
    return VectorStoreIndex.from_documents(texts, embed_model=MockEmbedding(4))


@pytest.mark.parametrize(("way", "capture"), [*((way, True) for way in WAYS), ("sync", False)])
def test_a_log_of_a_document_that_changed_is_not_given(way, capture, llm, memory):
    memory.outcomes = (*memory.outcomes, "incomplete")  # answers are cut off for length

    def used(index, question=QUESTION, capture=capture):
        inner = index.as_query_engine(llm=llm, streaming=way.endswith("stream"))
        response, _ = ask(LAGQueryEngine(inner, memory, capture=capture), way, question)
        memory.flush()
        return response.metadata["lag"]

    first = used(documents(filed(LIMA)), capture=True)["run_id"]
    (key,) = memory.store.ledger.ids()
    again = "Which code opens the vault in Lima?"
    assert used(documents(filed(LIMA)), again)["log_ids"] == [key]
    memory.delete(set(memory.store.ledger.ids()) - {key})
    lag = used(documents(filed(NEW)), again)
    assert (lag["recalled"], lag["log_ids"], lag["injected_tokens"]) == ([], [], 0)
    memory.delete(set(memory.store.ledger.ids()) - {key})
    assert used(documents(filed(LIMA)), again)["log_ids"] == [key]  # it is as it was again
    assert memory.get(key)[0].trace.id == first


@pytest.mark.parametrize(("mode", "way"), [*(("compact", way) for way in WAYS), ("refine", "sync")])
def test_another_log_takes_the_place_of_one_whose_document_changed(
    mode, way, llm, memory, no_worker
):
    (node,) = documents(filed(LIMA)).as_retriever().retrieve(QUESTION)
    sources = [source.to_json() for source in node_sources([node])]
    other = memory.add(qa("What is the code of the vault in Quito?", "It is 5123."))
    old = memory.add(VAULT.model_copy(update={"metadata": {"sources": sources}}))
    memory.flush()

    def used(text):
        inner = documents(filed(text)).as_query_engine(
            llm=llm, response_mode=mode, streaming=way.endswith("stream")
        )
        response, _ = ask(LAGQueryEngine(inner, memory, k=1, capture=False), way)
        memory.flush()
        lag = response.metadata["lag"]
        assert lag["recalled"] == lag["log_ids"]
        times = [info.times_recalled for info in memory.store.ledger.info([old, other])]
        return lag["log_ids"], times

    assert used(LIMA) == ([old], [1, 0])
    assert used(NEW) == ([other], [1, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_is_known_by_its_id_or_its_file(kind, llm, memory):
    memory.outcomes = (*memory.outcomes, "incomplete")  # answers are cut off for length

    def used(text, version):
        inner = documents(filed(text, kind, version)).as_query_engine(llm=llm)
        return LAGQueryEngine(inner, memory, capture=not version).query(QUESTION).metadata["lag"]

    used(LIMA, 0)
    memory.flush()
    assert len(used(LIMA, 1)["log_ids"]) == 1
    assert len(used(NEW, 2)["log_ids"]) == (1 if kind == KINDS[-1] else 0)


def test_nodes_that_are_given_are_looked_at(llm, memory):
    memory.outcomes = (*memory.outcomes, "incomplete")  # answers are cut off for length

    def used(text):
        index = documents(filed(text))
        engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
        nodes = index.as_retriever().retrieve(QUESTION)
        response = engine.synthesize(QueryBundle(QUESTION), nodes)
        memory.flush()
        return response.metadata["lag"]["log_ids"]

    assert used(LIMA) == []
    (key,) = memory.store.ledger.ids()
    assert used(LIMA) == [key]
    assert key not in used(NEW)


def test_logs_that_a_call_asks_for_are_given_whatever_changed(llm, memory):
    LAGQueryEngine(documents(filed(LIMA)).as_query_engine(llm=llm), memory).query(QUESTION)
    memory.flush()
    (key,) = memory.store.ledger.ids()
    exact = LAGLLM(llm.engine, memory=memory, max_tokens=4)
    used = []
    chat = exact._chat

    def told(messages, settings):
        response = chat(messages, {**settings, "kv_log_ids": [key]})
        used.extend(response.raw["lag"]["log_ids"])
        return response

    object.__setattr__(exact, "_chat", told)
    documents(filed(NEW)).as_query_engine(llm=exact).query(QUESTION)
    assert used == [key]


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
    memory.outcomes = (*memory.outcomes, "incomplete")  # answers are cut off for length
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
    assert memory.get(of_llama_index)[0].trace.metadata["source"] == "llama_index"


def test_feedback_names_the_run(index, llm, memory, lima):
    engine = LAGQueryEngine(index.as_query_engine(llm=llm), memory)
    run_id = engine.query(QUESTION).metadata["lag"]["run_id"]
    memory.feedback(run_id, outcome="failure")
    assert logs(memory)[QUESTION].outcome == "failure"

"""The memory as a LlamaIndex retriever."""

from __future__ import annotations

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode

from lag_integrations import Trace
from lag_integrations.errors import StoreError
from lag_integrations.llama_index import LogRetriever
from tests.conftest import qa
from tests.helpers import added
from tests.llama_index.fake_llm import fake_llm, texts

QUESTION = "Which code opens the vault in Lima?"
VAULT = qa(
    "What is the code of the vault in Lima?",
    "It is 7741.",
    outcome="success",
    metadata={"team": "safes", "tries": [1, 2]},
)
FERRY = qa("What does the Ostrava ferry carry?", "It carries bees.", metadata={"team": "ships"})
WRONG = qa("What is the code of the vault in Quito?", "No idea.", outcome="failure")

pytestmark = pytest.mark.usefixtures("no_worker")


def test_a_node_tells_what_was_asked_and_answered(memory):
    key, *_ = added(memory, VAULT, FERRY)
    retriever = memory.as_llama_index_retriever()
    assert type(retriever) is LogRetriever
    assert isinstance(retriever, BaseRetriever)
    (found,) = retriever.retrieve(QUESTION)
    assert found.node_id == key
    assert found.text == "Task: What is the code of the vault in Lima?\nAnswer: It is 7741."
    assert 0.5 < found.score <= 1
    assert found.metadata == {
        "log_id": key,
        "score": found.score,
        "task": VAULT.task,
        "outcome": "success",
        "started_at": VAULT.started_at.isoformat(),
        "team": "safes",
        "tries": [1, 2],
    }
    # Neither models nor embedders read what only programs want to know.
    assert found.get_content(MetadataMode.LLM) == found.get_content(MetadataMode.EMBED)
    assert found.get_content(MetadataMode.LLM) == found.text


def test_a_run_that_ended_with_an_action_shows_the_action(memory):
    steps = [
        {"role": "user", "content": "Turn the light in the hall off."},
        {"role": "assistant", "tool_calls": [{"name": "switch", "args": {"light": "hall"}}]},
    ]
    added(memory, Trace.from_messages(steps))
    (found,) = memory.as_llama_index_retriever().retrieve("Turn the light in the hall off.")
    assert "switch" in found.text
    assert "hall" in found.text


async def test_its_settings_choose_what_is_found(memory):
    vault, ferry, wrong = added(memory, VAULT, FERRY, WRONG)
    other = qa("What is the code of the vault in Lima, please?", "It is 7741, as I said.")
    (twin,) = added(memory, other)
    query = VAULT.task

    def found(**settings):
        retriever = memory.as_llama_index_retriever(newest_only=False, **settings)
        nodes = retriever.retrieve(query)
        assert [node.score for node in nodes] == sorted((n.score for n in nodes), reverse=True)
        return [node.node_id for node in nodes]

    assert found(k=5, min_score=-1) == [vault, twin, ferry]
    assert found(k=1) == [vault]
    assert found(min_score=0.5) == [vault, twin]
    assert found(where={"team": "ships"}, min_score=-1) == [ferry]
    assert found(outcomes=("failure",), min_score=-1) == [wrong]
    assert found(k=2, min_score=-1, diversity=0.9) == [vault, ferry]
    retriever = memory.as_llama_index_retriever(k=1)
    assert [node.node_id for node in await retriever.aretrieve(query)] == [twin]  # newer
    with pytest.raises(StoreError):
        memory.as_llama_index_retriever(where={"$nor": 1})


def test_what_a_newer_log_replaces_is_not_found(memory):
    question = "Who leads the team in Lima?"
    old, new = added(memory, qa(question, "It is Ada."), qa(question, "It is Jon now."))
    (node,) = memory.as_llama_index_retriever().retrieve(question)
    assert node.node_id == new
    both = memory.as_llama_index_retriever(newest_only=False).retrieve(question)
    assert {node.node_id for node in both} == {old, new}


async def test_in_a_query_engine(memory):
    (key,) = added(memory, VAULT)
    llm, seen = fake_llm("7741.")
    engine = RetrieverQueryEngine.from_args(memory.as_llama_index_retriever(), llm=llm)
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert str(response) == "7741."
        assert [node.node_id for node in response.source_nodes] == [key]
    assert len(seen) == 2
    for messages in seen:
        assert "Answer: It is 7741." in texts(messages)
        assert key not in texts(messages)


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "simple"])
def test_in_a_fusion_of_retrievers(memory, mode):
    vault, ferry = added(memory, VAULT, FERRY)
    llm, _ = fake_llm("What does the Ostrava ferry carry?")
    fusion = QueryFusionRetriever(
        [memory.as_llama_index_retriever(), memory.as_llama_index_retriever(k=1)],
        llm=llm,
        num_queries=1,
        mode=mode,
        use_async=False,
    )
    assert [node.node_id for node in fusion.retrieve(QUESTION)] == [vault]
    both = QueryFusionRetriever(
        [
            memory.as_llama_index_retriever(where={"team": "ships"}, min_score=-1),
            memory.as_llama_index_retriever(),
        ],
        llm=llm,
        num_queries=1,
        mode=mode,
    )
    assert {node.node_id for node in both.retrieve(QUESTION)} == {vault, ferry}

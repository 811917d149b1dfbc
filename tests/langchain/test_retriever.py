"""The memory as a retriever."""

from __future__ import annotations

import json

import pytest
from langchain_tests.integration_tests import RetrieversIntegrationTests

from lag_integrations import Trace
from lag_integrations.langchain import LogRetriever
from tests.conftest import qa
from tests.helpers import added

VAULT = qa(
    "What is the code of the vault in Lima?",
    "It is 7741.",
    outcome="success",
    metadata={"team": "safes", "tries": [1, 2]},
)
FERRY = qa("What does the Ostrava ferry carry?", "It carries bees.", metadata={"team": "ships"})
WRONG = qa("What is the code of the vault in Quito?", "No idea.", outcome="failure")


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _logs(self, memory):
        self.memory = memory
        added(memory, *(qa(f"What is the code of vault {n}?", f"It is {n}{n}.") for n in range(5)))

    @property
    def retriever_constructor(self):
        return LogRetriever

    @property
    def retriever_constructor_params(self):
        return {"memory": self.memory}

    @property
    def retriever_query_example(self):
        return "What is the code of the vault?"


def test_a_document_tells_what_was_asked_and_answered(memory):
    key, *_ = added(memory, VAULT, FERRY)
    (document,) = memory.as_retriever().invoke("Which code opens the vault in Lima?")
    assert document.id == key
    assert (
        document.page_content == "Task: What is the code of the vault in Lima?\nAnswer: It is 7741."
    )
    metadata = dict(document.metadata)
    assert 0.5 < metadata.pop("score") <= 1
    assert metadata == {
        "log_id": key,
        "task": VAULT.task,
        "outcome": "success",
        "started_at": VAULT.started_at.isoformat(),
        "team": "safes",
        "tries": [1, 2],
    }
    json.dumps(document.metadata)


def test_a_run_that_ended_with_an_action_shows_the_action(memory):
    steps = [
        {"role": "user", "content": "Turn the light in the hall off."},
        {"role": "assistant", "tool_calls": [{"name": "switch", "args": {"light": "hall"}}]},
    ]
    added(memory, Trace.from_messages(steps))
    (document,) = memory.as_retriever().invoke("Turn the light in the hall off.")
    assert "switch" in document.page_content
    assert "hall" in document.page_content


async def test_its_fields_choose_what_is_found_and_a_call_overrides_them(memory):
    vault, ferry, wrong = added(memory, VAULT, FERRY, WRONG)

    def ids(documents):
        return [document.id for document in documents]

    query = "What is the code of the vault in Lima?"
    wide = memory.as_retriever(k=5, min_score=-1)
    assert ids(wide.invoke(query)) == [vault, ferry]
    assert ids(await wide.ainvoke(query, k=1)) == [vault]
    assert ids(await wide.ainvoke(query, where={"team": "ships"})) == [ferry]
    assert ids(wide.invoke(query, min_score=0.9)) == [vault]
    failures = memory.as_retriever(outcomes=["failure"], min_score=-1)
    assert ids(failures.invoke(query)) == [wrong]
    assert ids(memory.as_retriever(where={"team": "ships"}, min_score=-1).invoke(query)) == [ferry]
    assert ids(memory.as_retriever(k=1).invoke(query)) == [vault]


def test_what_a_newer_log_replaces_is_not_found(memory):
    question = "Who leads the team in Lima?"
    old, new = added(memory, qa(question, "It is Ada."), qa(question, "It is Jon now."))
    (document,) = memory.as_retriever().invoke(question)
    assert document.id == new
    for both in (
        memory.as_retriever(newest_only=False).invoke(question),
        memory.as_retriever().invoke(question, newest_only=False),
    ):
        assert {document.id for document in both} == {old, new}


def test_it_shows_no_memory_when_it_is_printed(memory):
    assert "memory" not in repr(memory.as_retriever(k=2))

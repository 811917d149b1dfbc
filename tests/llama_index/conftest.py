from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from transformers import AutoTokenizer

from lag_integrations import KVLogMemory, packaged
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.capture.handlers import tracker
from lag_integrations.memory.results import SearchResult
from lag_integrations.memory.safe_recall import SafeRecall
from tests.fake_engine import FakeEngine
from tests.helpers import added
from tests.llama_index.fake_llm import FERRY, VAULT, our_handlers


@pytest.fixture(autouse=True)
def handlers_are_ours() -> Iterator[None]:
    """LlamaIndex is silent about a handler that is lost or broken: whoever does it shall fail."""
    yield
    spans, events = our_handlers()
    assert len(spans) == len(events) <= 1
    assert all(each._tracker is tracker for each in [*spans, *events])


@pytest.fixture(scope="session")
def one_puppet() -> FakeEngine:
    return FakeEngine(AutoTokenizer.from_pretrained(packaged.chat_model()))


@pytest.fixture
def puppet(one_puppet: FakeEngine) -> FakeEngine:
    """An engine that says what it is told to."""
    one_puppet.says()
    return one_puppet


@pytest.fixture
def puppet_llm(puppet: FakeEngine) -> LAGLLM:
    """An LLM that says what the puppet is told."""
    return LAGLLM(puppet, temperature=0, max_tokens=200)


@pytest.fixture
def logs(memory: KVLogMemory, no_worker: None) -> list[str]:
    """The vault's and the ferry's."""
    return added(memory, VAULT, FERRY)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries of all recalls."""
    queries: list[str] = []
    search = SafeRecall.search

    def counted(self: SafeRecall, query: str, **kwargs: Any) -> SearchResult:
        queries.append(query)
        return search(self, query, **kwargs)

    monkeypatch.setattr(SafeRecall, "search", counted)
    return queries

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index_instrumentation import get_dispatcher
from transformers import AutoTokenizer

from lag_integrations import KVLogMemory, packaged
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.capture.instrument import _watch
from lag_integrations.memory.results import SearchResult
from lag_integrations.memory.safe_recall import SafeRecall
from tests.llama_index.recorder import FERRY, VAULT, added
from tests.puppet import Puppet


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    """LlamaIndex is silent about a handler that is lost or broken: whoever does it shall fail."""
    yield
    root = get_dispatcher()
    for handlers in (root.span_handlers, root.event_handlers):
        ours = [each for each in handlers if each.class_name().startswith("LAG")]
        assert [each._watch for each in ours] == [_watch]


@pytest.fixture(scope="session")
def one_puppet() -> Puppet:
    return Puppet(AutoTokenizer.from_pretrained(packaged.chat_model()))


@pytest.fixture
def puppet(one_puppet: Puppet) -> Puppet:
    """An engine that says what it is told to."""
    one_puppet.says()
    return one_puppet


@pytest.fixture
def told(puppet: Puppet) -> LAGLLM:
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

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_index_instrumentation import get_dispatcher
from transformers import AutoTokenizer

from lag_integrations import packaged
from lag_integrations.llama_index import LAGLLM
from lag_integrations.llama_index.capture import _watch
from tests.llama_index.puppet import Puppet


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

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import packaged
from lag_integrations.llama_index import LAGLLM
from tests.llama_index.puppet import Puppet


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

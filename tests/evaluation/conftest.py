from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import packaged
from tests.fake_engine import FakeEngine


@pytest.fixture(scope="session")
def one_puppet() -> FakeEngine:
    return FakeEngine(AutoTokenizer.from_pretrained(str(packaged.chat_model())))


@pytest.fixture
def puppet(one_puppet: FakeEngine) -> FakeEngine:
    """An engine that says what it is told."""
    one_puppet.says()
    return one_puppet

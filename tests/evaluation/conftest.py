from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from lag_integrations import packaged
from tests.puppet import Puppet


@pytest.fixture(scope="session")
def one_puppet() -> Puppet:
    return Puppet(AutoTokenizer.from_pretrained(str(packaged.chat_model())))


@pytest.fixture
def puppet(one_puppet: Puppet) -> Puppet:
    """An engine that says what it is told."""
    one_puppet.says()
    return one_puppet

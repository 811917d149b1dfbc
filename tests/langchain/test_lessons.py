"""Lessons that a LangChain chat model distils."""

from __future__ import annotations

import pytest

from lag_integrations import Trace
from lag_integrations.errors import DistillationError
from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa
from tests.fake_engine import FakeEngine
from tests.helpers import captured
from tests.langchain.fake_chat_model import FakeChatModel

LESSON = "When: parcels. Do: book first."


@pytest.fixture
def parcels(memory, no_worker) -> list[Trace]:
    traces = [
        qa(f"How do we ship a parcel to {to}?", f"By the {to} ferry.") for to in ("Kiel", "Oslo")
    ]
    memory.add_many(traces)
    return traces


def test_a_chat_model_distils_and_is_not_captured(memory, parcels):
    model = FakeChatModel(LESSON)
    with memory.capture():
        (key,) = memory.learn(model).lessons
    assert memory.get(key)[0].trace.last_response == LESSON
    ((message,),) = model.seen
    assert "By the Oslo ferry." in message.text
    assert len(captured(memory)) == 3


def test_a_chat_model_that_fails_is_asked_again(memory, parcels):
    with pytest.raises(DistillationError, match="ValueError"):
        memory.learn(FakeChatModel(ValueError("overloaded")))
    assert len(memory.learn(FakeChatModel(LESSON)).lessons) == 1


def test_a_wrapped_model_is_given_no_logs_for_it(memory, parcels, engine):
    fake = FakeEngine(engine.tokenizer)
    fake.says(LESSON)
    (key,) = memory.learn(LAGChatModel(fake, memory=memory)).lessons
    assert memory.get(key)[0].trace.last_response == LESSON
    assert fake.injected == [0]

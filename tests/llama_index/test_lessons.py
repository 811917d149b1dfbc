"""Lessons that a LlamaIndex LLM distils."""

from __future__ import annotations

from lag_integrations.llama_index import LAGLLM
from tests.conftest import qa
from tests.fake_engine import FakeEngine
from tests.llama_index.fake_llm import FakeCompletionLLM

LESSON = "When: parcels. Do: book first."
PARCELS = [
    qa(f"How do we ship a parcel to {to}?", f"By the {to} ferry.") for to in ("Kiel", "Oslo")
]


def test_an_llm_distils_and_is_not_captured(memory, no_worker):
    memory.add_many(PARCELS)
    with memory.capture():
        (key,) = memory.learn(FakeCompletionLLM(LESSON)).lessons
    assert memory.get(key)[0].trace.last_response == LESSON
    assert memory.store.ledger.count() == 3


def test_a_wrapped_model_is_given_no_logs_for_it(memory, no_worker, engine):
    memory.add_many(PARCELS)
    fake = FakeEngine(engine.tokenizer)
    fake.says(LESSON)
    (key,) = memory.learn(LAGLLM(fake, memory=memory)).lessons
    assert memory.get(key)[0].trace.last_response == LESSON
    assert fake.injected == [0]

"""LangChain's own suites for chat models; in `make test-slow` also on the real packaged model.

Off, for the model's modality: image, image URL, PDF, audio and video inputs, and image and PDF tool
messages. Off, because one object is one model: overriding the model's name in a call.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from lag_integrations import Engine, KVLogMemory, packaged
from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa

TASK = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")


class _Abilities:
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return LAGChatModel

    @property
    def has_tool_calling(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def returns_usage_metadata(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(
        self,
    ) -> dict[Literal["invoke", "stream"], list[Any]]:
        details = ["cache_read_input", "cache_creation_input"]
        return {"invoke": details, "stream": details}


TOO_SMALL = "A model of 135M parameters answers in words where it may; it must be made to call."

WORDS = {"test_tool_calling", "test_tool_calling_async", "test_unicode_tool_call_integration"}
"""Tests that look at what is said; the form alone is not enough."""


class TestUnit(_Abilities, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": str(packaged.chat_model())}


class TestIntegration(_Abilities, ChatModelIntegrationTests):
    """On random weights: words may be any, and forms must be right all the same."""

    @pytest.fixture(autouse=True)
    def _shared(self, request: pytest.FixtureRequest, memory: KVLogMemory) -> None:
        model = "engine" if request.function.__name__ in WORDS else "small"
        self._engine, self._memory = request.getfixturevalue(model), memory

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": self._engine, "temperature": 0, "max_tokens": 60}

    @pytest.mark.xfail(reason=TOO_SMALL, strict=True)
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        self._memory.attach(self._engine)
        self._memory.add(TASK)
        self._memory.flush()
        return self._ask(stream)

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        self._memory.add(TASK)
        self._memory.flush()  # embedded; with no model attached, not encoded
        return self._ask(stream)

    def _ask(self, stream: bool) -> AIMessage:
        model = LAGChatModel(model=self._engine, memory=self._memory, max_tokens=8)
        if not stream:
            return model.invoke(TASK.task)
        chunks = list(model.stream(TASK.task))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole + chunk
        return whole


@pytest.mark.slow
class TestRealModel(TestIntegration):
    @pytest.fixture(autouse=True)
    def _shared(self, engine: Engine, memory: KVLogMemory) -> None:
        self._engine, self._memory = engine, memory

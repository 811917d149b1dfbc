"""A LlamaIndex LLM that distils lessons."""

from __future__ import annotations

from collections.abc import Callable

from llama_index.core.llms import LLM

from lag_integrations.capture.judges import uncaptured
from lag_integrations.engine.engine import Engine
from lag_integrations.llama_index.llm import LAGLLM


def teacher(model: LLM) -> Engine | Callable[[str], str]:
    """Return what an LLM answers to a prompt; its calls are not captured.

    Of `LAGLLM`, it is the wrapped model, which is given no logs.
    """
    if isinstance(model, LAGLLM):
        return model.engine

    def ask(prompt: str) -> str:
        with uncaptured():
            return str(model.complete(prompt).text)

    return ask

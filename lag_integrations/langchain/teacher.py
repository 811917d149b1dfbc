"""A chat model that distils lessons."""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.language_models import BaseChatModel

from lag_integrations.capture.judges import uncaptured
from lag_integrations.engine.engine import Engine
from lag_integrations.langchain.chat_models import LAGChatModel


def teacher(model: BaseChatModel) -> Engine | Callable[[str], str]:
    """Return what a chat model answers to a prompt; its calls are not captured.

    Of `LAGChatModel`, it is the wrapped model, which is given no logs.
    """
    if isinstance(model, LAGChatModel):
        return model.engine

    def ask(prompt: str) -> str:
        with uncaptured():
            return str(model.invoke(prompt).text)

    return ask

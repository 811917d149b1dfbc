"""LangChain: a chat model that recalls, a callback handler that captures, and other forms.

They need the extra ``langchain``; the middleware and the stores need the extra ``agents``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import langchain_core  # noqa: F401
except ImportError:
    raise ImportError(
        "lag_integrations.langchain needs langchain-core. "
        "Install it with: pip install 'lag_integrations[langchain]'"
    ) from None

from lag_integrations.langchain.capture.handler import CaptureHandler
from lag_integrations.langchain.chat_models import LAGChatModel
from lag_integrations.langchain.judge import LLMJudge
from lag_integrations.langchain.retriever import LogRetriever
from lag_integrations.langchain.tool import recall_tool

if TYPE_CHECKING:
    from lag_integrations.langchain.key_value import LogKeyValueStore
    from lag_integrations.langchain.middleware import KVLogMiddleware
    from lag_integrations.langchain.store import LogBaseStore

__all__ = [
    "CaptureHandler",
    "KVLogMiddleware",
    "LAGChatModel",
    "LLMJudge",
    "LogBaseStore",
    "LogKeyValueStore",
    "LogRetriever",
    "recall_tool",
]

_AGENT_MODULES = {
    "KVLogMiddleware": "middleware",
    "LogBaseStore": "store",
    "LogKeyValueStore": "key_value",
}
"""The modules that need more than langchain-core, by what they hold."""


def __getattr__(name: str) -> Any:
    if name not in _AGENT_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_AGENT_MODULES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("langchain", "langgraph"):
            raise
        raise ImportError(
            f"{name} needs langchain and langgraph. "
            "Install them with: pip install 'lag_integrations[agents]'"
        ) from error
    return getattr(module, name)

"""LangChain: a chat model that recalls, and callbacks that capture (extra ``langchain``)."""

try:
    import langchain_core  # noqa: F401
except ImportError:
    raise ImportError(
        "lag_integrations.langchain needs langchain-core. "
        "Install it with: pip install 'lag_integrations[langchain]'"
    ) from None

from lag_integrations.langchain.callbacks import CaptureHandler
from lag_integrations.langchain.chat_models import LAGChatModel

__all__ = ["CaptureHandler", "LAGChatModel"]

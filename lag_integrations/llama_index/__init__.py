"""LlamaIndex: an LLM that recalls, memories for agents and query engines, and capture.

All of it needs the extra ``llama-index``.
"""

from __future__ import annotations

try:
    import llama_index.core  # noqa: F401
except ImportError:
    raise ImportError(
        "lag_integrations.llama_index needs llama-index-core. "
        "Install it with: pip install 'lag_integrations[llama-index]'"
    ) from None

from lag_integrations.llama_index.judge import LLMJudge
from lag_integrations.llama_index.llm import LAGLLM
from lag_integrations.llama_index.memory import LAGMemory
from lag_integrations.llama_index.memory_block import KVLogMemoryBlock
from lag_integrations.llama_index.query_engine import LAGQueryEngine
from lag_integrations.llama_index.retriever import LogRetriever

__all__ = [
    "LAGLLM",
    "KVLogMemoryBlock",
    "LAGMemory",
    "LAGQueryEngine",
    "LLMJudge",
    "LogRetriever",
]

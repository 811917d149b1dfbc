"""The memory as a retriever: logs as documents."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field

from lag_integrations.memory import KVLogMemory, RecalledLog
from lag_integrations.texts import log_metadata, log_text
from lag_integrations.trace import Outcome


class LogRetriever(BaseRetriever):
    """Finds logs that fit a query, best first.

    A document's text is the log's task and last response. Its id is the log id; its metadata has
    ``log_id``, ``score``, ``task``, ``outcome``, ``started_at``, and what the trace's own has.

    Every field but the memory may also be given in a call: ``retriever.invoke("…", k=1)``.

    Example:
        .. code-block:: python

            retriever = memory.as_retriever(k=2, where={"team": "logistics"})
            documents = retriever.invoke("How do we ship to Norway?")
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    memory: KVLogMemory = Field(exclude=True, repr=False)
    """Where logs are recalled from."""
    k: int | None = None
    """Most logs to find; the memory's own by default, as for all that follow."""
    min_score: float | None = None
    """Least similarity."""
    where: dict[str, Any] | None = None
    """Only logs with such metadata."""
    outcomes: tuple[Outcome, ...] | None = None
    """Only logs with these outcomes."""
    diversity: float | None = None
    """How much the logs shall differ from each other."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return self._documents(query, kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, self._documents, query, kwargs)

    def _documents(self, query: str, kwargs: dict[str, Any]) -> list[Document]:
        settings = {
            name: getattr(self, name)
            for name in ("k", "min_score", "where", "outcomes", "diversity")
        }
        return [_document(log) for log in self.memory.recall(query, **{**settings, **kwargs})]


def _document(log: RecalledLog) -> Document:
    return Document(id=log.id, page_content=log_text(log.log), metadata=log_metadata(log))

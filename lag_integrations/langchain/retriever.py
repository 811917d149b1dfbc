"""The memory as a retriever: logs as documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, run_in_executor
from pydantic import ConfigDict, Field

from lag_integrations.langchain.capture.configs import config_of
from lag_integrations.langchain.capture.handler import owner_of
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import log_metadata, log_text
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.safe_recall import Refused, filter_for
from lag_integrations.traces.trace import Outcome


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

    memory: LogMemory = Field(exclude=True, repr=False)
    """Where logs are recalled from."""
    k: int | None = None
    """Most logs to find; the memory's own by default, as for all that follow."""
    min_score: float | None = None
    """Least similarity."""
    where: dict[str, Any] | Callable[[RunnableConfig], Any] | None = None
    """Only logs with such metadata; or a function of the call's config that returns such a filter.
    If it fails or returns none, nothing is found."""
    outcomes: tuple[Outcome, ...] | None = None
    """Only logs with these outcomes."""
    diversity: float | None = None
    """How much the logs shall differ from each other."""
    newest_only: bool = True
    """Of logs of one task only the newest; and newer ones first where tasks are alike."""

    # LangChain hands a retriever's own methods no config: a filter function is asked before.

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find logs."""
        return super().invoke(input, config, **self._with_filter(config, kwargs))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Find logs."""
        return await super().ainvoke(input, config, **self._with_filter(config, kwargs))

    def _with_filter(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        where = kwargs.get("where") or self.where
        if not callable(where):
            return kwargs
        return {**kwargs, "where": filter_for(where, config_of(config))}

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return self._documents(query, kwargs, run_manager)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, self._documents, query, kwargs, run_manager)

    def _documents(self, query: str, kwargs: dict[str, Any], run: Any) -> list[Document]:
        settings = {
            name: getattr(self, name)
            for name in ("k", "min_score", "where", "outcomes", "diversity", "newest_only")
        }
        settings |= kwargs
        if isinstance(settings["where"], Refused):
            return settings["where"].nothing()
        owner = owner_of(config_of(run=run), run)
        logs = self.memory.recall(query, user=owner.user, thread=owner.thread, **settings)
        return [_document(log) for log in logs]


def _document(log: RecalledLog) -> Document:
    return Document(id=log.id, page_content=log_text(log.trace), metadata=log_metadata(log))

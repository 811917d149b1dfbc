"""A retriever whose documents are logs."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig, run_in_executor
from pydantic import ConfigDict, Field, field_validator

from lag_integrations.langchain.capture.configs import config_of
from lag_integrations.langchain.capture.current import current_owner
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import log_metadata, log_text
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.safe_recall import Refused, WhereFunction, check_where, filter_for
from lag_integrations.store.filters import Where
from lag_integrations.traces.trace import Outcome


class LogRetriever(BaseRetriever):
    """Retrieve logs that fit a query, best first.

    A document's text is the log's task and last response. Its id is the log id; its metadata has
    ``log_id``, ``score``, ``task``, ``outcome``, ``started_at``, and what the trace's own has.

    Every field but the memory may also be given in a call: ``retriever.invoke("…", k=1)``.

    Example:
        .. code-block:: python

            retriever = memory.as_retriever(k=2, where={"team": "logistics"})
            documents = retriever.invoke("How do we ship to Norway?")

    Raises:
        ValueError: A field is unknown or not valid.
        StoreError: The filter is malformed.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", use_attribute_docstrings=True
    )

    memory: LogMemory = Field(exclude=True, repr=False)
    """Where logs are recalled from."""
    k: int | None = Field(default=None, ge=0)
    """Most logs to return; the memory's own setting by default."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Least similarity; the memory's own setting by default."""
    where: Where | WhereFunction | None = None
    """Only logs with such metadata; or a function of the call's config that returns such a filter.
    If it fails or returns none, nothing is retrieved."""
    outcomes: tuple[Outcome, ...] | None = None
    """Only logs with these outcomes; the memory's own setting by default."""
    diversity: float | None = Field(default=None, ge=0, le=1)
    """How much the logs shall differ from each other; the memory's own setting by default."""
    newest_only: bool = True
    """Of logs of one task only the newest; and newer ones first where tasks are alike."""

    @field_validator("where")
    @classmethod
    def _check_where(cls, where: Any) -> Any:
        check_where(where)
        return where

    # LangChain passes no config to `_get_relevant_documents`: a filter function is called before.

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the logs that fit a query."""
        return super().invoke(input, config, **self._with_filter(config, kwargs))

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """Return the logs that fit a query."""
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
        owner = current_owner(config_of(run=run), run)
        logs = self.memory.recall(query, user=owner.user, thread=owner.thread, **settings)
        return [_document(log) for log in logs]


def _document(log: RecalledLog) -> Document:
    return Document(id=log.id, page_content=log_text(log.trace), metadata=log_metadata(log))

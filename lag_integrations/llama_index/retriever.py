"""The memory as a retriever: logs as nodes."""

from __future__ import annotations

import asyncio
from typing import Annotated

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import Field, NonNegativeInt, SkipValidation, validate_call

from lag_integrations.errors import SettingsError
from lag_integrations.llama_index.capture.current import current_owner
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import log_metadata, log_text
from lag_integrations.memory.results import RecalledLog
from lag_integrations.memory.safe_recall import Refused, WhereFunction, check_where, filter_for
from lag_integrations.store.filters import Where
from lag_integrations.traces.trace import Outcome


class LogRetriever(BaseRetriever):
    """Finds logs that fit a query, best first, as text for models whose KV cache is out of reach.

    A node's text is the log's task and last response. Its id is the log id; its metadata has
    ``log_id``, ``score``, ``task``, ``outcome``, ``started_at``, and what the trace's own has, and
    is not shown to the model.

    Example:
        .. code-block:: python

            retriever = memory.as_llama_index_retriever(k=2, where={"team": "logistics"})
            RetrieverQueryEngine.from_args(retriever, llm=llm).query("How do we ship to Norway?")

    Args:
        memory: Where logs are recalled from.
        k: Most logs to find; the memory's own by default, as for all that follow.
        min_score: Least similarity.
        where: Only logs with such metadata; or a function of the ``instrument_tags`` at hand (a
            dict) that returns such a filter. If it fails or returns none, nothing is found.
        outcomes: Only logs with these outcomes.
        diversity: How much the logs should differ from each other.
        newest_only: Of logs of one task only the newest; and newer ones first where tasks are
            alike.

    Raises:
        ValueError: There is no memory, or a setting is unknown or not valid.
        StoreError: The filter is malformed.
    """

    @validate_call(config={"arbitrary_types_allowed": True})
    def __init__(
        self,
        memory: SkipValidation[LogMemory],
        *,
        k: NonNegativeInt | None = None,
        min_score: float | None = None,
        where: SkipValidation[Where | WhereFunction | None] = None,
        outcomes: tuple[Outcome, ...] | None = None,
        diversity: Annotated[float, Field(ge=0, le=1)] | None = None,
        newest_only: bool = True,
    ) -> None:
        if not isinstance(memory, LogMemory):
            raise SettingsError(
                "A LogRetriever needs a memory of logs: LogRetriever(KVLogMemory('./logs'))."
            )
        super().__init__()
        check_where(where)
        self._memory = memory
        self._where = where
        self._settings = {
            "k": k,
            "min_score": min_score,
            "outcomes": outcomes,
            "diversity": diversity,
            "newest_only": newest_only,
        }

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        where = filter_for(self._where, current_tags())
        if isinstance(where, Refused):
            return where.nothing()
        query: str = query_bundle.query_str
        owner = current_owner()
        logs = self._memory.recall(
            query,
            where=where,
            user=owner.user,
            thread=owner.thread,
            **self._settings,  # type: ignore[arg-type]
        )
        return [NodeWithScore(node=_node(log), score=log.score) for log in logs]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _node(log: RecalledLog) -> TextNode:
    metadata = log_metadata(log)
    return TextNode(
        id_=log.id,
        text=log_text(log.trace),
        metadata=metadata,
        excluded_llm_metadata_keys=list(metadata),
        excluded_embed_metadata_keys=list(metadata),
    )

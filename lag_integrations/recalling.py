"""Recall on behalf of an answer or an agent, which must not break for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lag_integrations.errors import EmbedderMismatchError, StoreError
from lag_integrations.store.filters import Where, condition

if TYPE_CHECKING:
    from lag_integrations.memory import KVLogMemory, RecalledLog

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SafeRecall:
    """Recalls with fixed settings; a memory that fails gives nothing, and a warning.

    Attributes:
        memory: Where logs are recalled from.
        k: Most logs to recall; the memory's own by default, as for all that follow.
        min_score: Least similarity.
        where: Only logs with such metadata.

    Raises:
        StoreError: The filter is malformed.
    """

    memory: KVLogMemory
    k: int | None = None
    min_score: float | None = None
    where: Where | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            condition(self.where)  # refused now, rather than with a warning in every run

    def __call__(self, query: str, *, but_thread: str | None = None) -> list[RecalledLog]:
        """The logs that fit a query, best first.

        Args:
            query: The task.
            but_thread: No logs of this thread.

        Raises:
            EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
        """
        where = self.where
        if but_thread is not None:
            others: Where = {"thread_id": {"$ne": but_thread}}
            where = others if where is None else {"$and": [where, others]}
        try:
            return self.memory.recall(query, k=self.k, min_score=self.min_score, where=where)
        except EmbedderMismatchError:
            raise
        except StoreError as error:
            return _nothing(error)

    def by_id(self, log_ids: Sequence[str]) -> list[RecalledLog]:
        """Logs that were recalled before; those deleted since are left out."""
        try:
            return self.memory.get(log_ids)
        except StoreError as error:
            return _nothing(error)


def _nothing(error: StoreError) -> list[RecalledLog]:
    logger.warning("Nothing is recalled. %s", error)
    return []

"""What a task recalled, and how it reaches the prompt."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lag_integrations.chat.request import RetrievalSettings
from lag_integrations.errors import StoreError
from lag_integrations.kv.segment import Segment
from lag_integrations.memory.loading import LoadedLog
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.results import RecalledLog, SearchResult
from lag_integrations.memory.safe_recall import SafeRecall
from lag_integrations.traces.conversation import last_two
from lag_integrations.traces.message import Message

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievedContext:
    """What a task recalled.

    Attributes:
        loaded: The logs that the model is given, best first.
        nearest_miss: Where nothing was recalled, the most relevant log below the floor.
        best_last: Whether the most relevant log stands nearest to the question (else farthest).
        timings: Seconds of ``recall`` and ``load``.
    """

    loaded: Sequence[LoadedLog] = ()
    nearest_miss: RecalledLog | None = None
    best_last: bool = True
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def as_kv(self) -> list[RecalledLog]:
        """The logs given as segments, best first."""
        return [one.log for one in self.loaded if one.segment is not None]

    @property
    def as_text(self) -> list[RecalledLog]:
        """The logs given as text, best first."""
        return [one.log for one in self.loaded if one.segment is None]

    @property
    def segments(self) -> list[Segment]:
        """The segments, in the order in which the model shall see them."""
        segments = [one.segment for one in self.loaded if one.segment is not None]
        return segments[::-1] if self.best_last else segments

    @property
    def texts(self) -> list[str]:
        """The last responses, or steps, that are read as text, in the order of the prompt."""
        texts = [log.text for log in self.as_text]
        return texts[::-1] if self.best_last else texts

    @property
    def encoded_tokens(self) -> int:
        """Tokens of segments that had to be encoded first."""
        return sum(one.tokens for one in self.loaded if one.encoded)


def retrieve_context(
    memory: LogMemory | None,
    engine: Engine,
    messages: Sequence[Message],
    settings: RetrievalSettings,
    budget: int,
    question: str | None = None,
) -> RetrievedContext:
    """Recall for what the user said last, and load what fits.

    Logs of which task and response stand in the conversation are not recalled by it. A memory that
    cannot be used does not cost the answer: a warning is logged, and the model answers without.

    Args:
        memory: Where logs are recalled from.
        engine: The model that is to use them.
        messages: The conversation.
        settings: How logs are recalled.
        budget: Most tokens that they may take.
        question: The task, where the user's last message holds more, such as documents.

    Raises:
        EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
    """
    started = time.perf_counter()
    result = SearchResult() if memory is None else recall_for(memory, messages, settings, question)
    recalled = time.perf_counter()
    loaded: Sequence[LoadedLog] = ()
    if memory is not None and result.logs:
        try:
            loaded = memory.load(
                result.logs,
                engine,
                budget=budget,
                missing=settings.missing,
                as_text=settings.as_text or engine.log_form == "text",
            )
        except StoreError as error:
            logger.warning("No log is used. %s", error)
    timings = {"recall": recalled - started, "load": time.perf_counter() - recalled}
    return RetrievedContext(loaded, result.nearest_miss, settings.best_last, timings)


def recall_for(
    memory: LogMemory,
    messages: Sequence[Message],
    settings: RetrievalSettings,
    question: str | None = None,
) -> SearchResult:
    """Recall for a conversation, of each log what its task is given of it.

    Args:
        memory: Where logs are recalled from.
        messages: The conversation.
        settings: How logs are recalled.
        question: The task, where the user's last message holds more, such as documents.

    Raises:
        EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
    """
    result = _recall(memory, messages, settings)
    task = question or settings.query or last_two(_said(messages, settings))[0]
    return replace(result, logs=[log.for_task(task) for log in result.logs])


def _recall(
    memory: LogMemory, messages: Sequence[Message], settings: RetrievalSettings
) -> SearchResult:
    safe = SafeRecall(memory, settings.k, settings.min_score, settings.where, settings.owner)
    if settings.log_ids is not None:
        return SearchResult(safe.by_id(settings.log_ids, shown=settings.shown))
    if settings.query is not None:
        return safe.search(settings.query, prompt=messages, shown=settings.shown)
    text, before = last_two(_said(messages, settings))
    return safe.search(text, before=before, prompt=messages, shown=settings.shown)


def _said(messages: Sequence[Message], settings: RetrievalSettings) -> Sequence[str]:
    """Return what the user said, in order."""
    if settings.said is not None:
        return settings.said
    return [message.text for message in messages if message.role == "user"]

"""What a task recalls for a model: the logs, their segments, and those that are read as text."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lag_integrations.engine.log_texts import with_texts
from lag_integrations.errors import LAGError
from lag_integrations.memory.results import SearchResult
from lag_integrations.memory.safe_recall import AnyWhere, SafeRecall
from lag_integrations.traces.provenance import NOBODY, Owner
from lag_integrations.traces.queries import last_two
from lag_integrations.traces.sources import Source
from lag_integrations.traces.trace import Message

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine
    from lag_integrations.kv.segment import Segment
    from lag_integrations.memory.memory import LogMemory
    from lag_integrations.memory.results import RecalledLog

logger = logging.getLogger(__name__)

_SPARE = 32
"""Tokens that a prompt may grow by when logs stand in it, or when its answer is begun."""

MissingSegments = Literal["encode", "text"]


@dataclass(frozen=True)
class RetrievalSettings:
    """How logs are recalled.

    Attributes:
        k: Most logs; the memory's own setting by default, 0 for none.
        min_score: Least similarity; the memory's own setting by default.
        query: What logs are searched by; by default the user's last message, or where that recalls
            nothing, the last two.
        said: What the user said, in order, if not all that stands in their name.
        where: Only logs with such metadata; a function was asked before.
        owner: Whose run asks.
        log_ids: Exactly these logs instead.
        shown: Documents that the prompt holds: no logs of which one was changed since.
        missing: What to do with a log that has no valid segment for this model: encode its trace
            now, or give its last response as text this time (the worker encodes it meanwhile).
        as_text: Give every log's last response as text, to compare.
        best_last: Whether the most relevant log stands nearest to the question (else farthest).
    """

    k: int | None = None
    min_score: float | None = None
    query: str | None = None
    said: Sequence[str] | None = None
    where: AnyWhere | None = None
    owner: Owner = NOBODY
    log_ids: Sequence[str] | None = None
    shown: Sequence[Source] = ()
    missing: MissingSegments = "encode"
    as_text: bool = False
    best_last: bool = True


@dataclass
class RetrievedContext:
    """What a task recalled.

    Attributes:
        chat: The conversation, with the logs that are read as text.
        segments: The segments, in the order in which the model shall see them.
        logs: The logs of the segments, best first.
        read: The logs that are read as text, best first.
        nearest_miss: Where nothing was recalled, the most relevant log below the floor.
        encoded_tokens: Tokens of segments that had to be encoded first.
        timings: Seconds of ``recall`` and ``load``.
    """

    chat: Sequence[Message]
    segments: list[Segment] = field(default_factory=list)
    logs: list[RecalledLog] = field(default_factory=list)
    read: list[RecalledLog] = field(default_factory=list)
    nearest_miss: RecalledLog | None = None
    encoded_tokens: int = 0
    timings: dict[str, float] = field(default_factory=dict)


def retrieve_context(
    engine: Engine,
    memory: LogMemory | None,
    chat: Sequence[Message],
    recall: RetrievalSettings,
    *,
    question_text: str | None = None,
    max_tokens: int,
    tools: Sequence[dict[str, Any]] = (),
) -> RetrievedContext:
    """Recall for what the user said last, and load what fits the window.

    Logs of which task and response stand in the conversation are not recalled by it.

    A memory that cannot be used does not cost the answer: a warning is logged, and the model
    answers without.

    Raises:
        EmbedderMismatchError: Nothing would ever be recalled: that has to be seen.
    """
    started = time.perf_counter()
    injection = RetrievedContext(chat)
    result = SearchResult() if memory is None else _recall(memory, chat, recall)
    found, injection.nearest_miss = result.logs, result.nearest_miss
    recalled = time.perf_counter()
    if memory is not None and found:
        # A quarter of the window is kept for the answer at most: it may well be shorter.
        room = engine.window - engine.count_tokens(chat, tools) - _SPARE
        _load(injection, memory, engine, found, recall, room - min(max_tokens, engine.window // 4))
        texts = [log.trace.last_response for log in injection.read]
        injection.chat = with_texts(chat, texts[::-1] if recall.best_last else texts, question_text)
        if recall.best_last:
            injection.segments.reverse()
    injection.timings = {"recall": recalled - started, "load": time.perf_counter() - recalled}
    return injection


def _recall(memory: LogMemory, chat: Sequence[Message], recall: RetrievalSettings) -> SearchResult:
    safe = SafeRecall(memory, recall.k, recall.min_score, recall.where, recall.owner)
    if recall.log_ids is not None:
        return SearchResult(safe.by_id(recall.log_ids, shown=recall.shown))
    if recall.query is not None:
        return safe.search(recall.query, prompt=chat, shown=recall.shown)
    said = recall.said
    if said is None:
        said = [message.text for message in chat if message.role == "user"]
    text, before = last_two(said)
    return safe.search(text, before=before, prompt=chat, shown=recall.shown)


def _load(
    injection: RetrievedContext,
    memory: LogMemory,
    engine: Engine,
    found: Sequence[RecalledLog],
    recall: RetrievalSettings,
    room: int,
) -> None:
    """Take the logs that fit into some tokens, the most relevant first."""
    as_text = recall.as_text or engine.log_form == "text"
    for log in found:
        try:
            segment = None if as_text else memory.stored_segments([log], engine)[0]
            encoded = segment is None and not as_text and recall.missing == "encode"
            if encoded:
                segment = memory.segments([log], engine)[0]
            length = (
                engine.count_text(log.trace.last_response) + 1 if segment is None else len(segment)
            )
        except (LAGError, RuntimeError, OSError) as error:  # of torch: out of memory
            logger.warning("Log %s is not used: %s", log.id, error)
            continue
        if length > room:
            logger.info("Log %s (%d tokens) does not fit the window.", log.id, length)
            continue
        room -= length
        if segment is None:
            injection.read.append(log)
            continue
        injection.logs.append(log)
        injection.segments.append(segment)
        injection.encoded_tokens += length if encoded else 0

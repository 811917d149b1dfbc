"""A model at another server with OpenAI's API, which is given logs as text."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from lag_integrations.chat.context import recall_for
from lag_integrations.chat.parts import Part
from lag_integrations.chat.remote import RemoteModel, RemoteReply
from lag_integrations.chat.request import ChatRequest
from lag_integrations.chat.request_body import openai_body
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.engine.log_texts import with_texts
from lag_integrations.errors import SettingsError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.rendering import MAX_CHARS
from lag_integrations.memory.results import RecalledLog, SearchResult
from lag_integrations.memory.safe_recall import miss_report
from lag_integrations.traces.message import Message


class UpstreamModel:
    """Answers by a model that knows nothing of logs.

    Args:
        settings: Where it is (``base_url``), its name there, and its key.
        max_chars: Most characters of logs; the least relevant are left out.
    """

    def __init__(self, settings: ModelSettings, max_chars: int = MAX_CHARS) -> None:
        self._model = RemoteModel(settings)
        self._name = settings.model
        self._max_chars = max_chars

    @property
    def window(self) -> None:
        """None: its server knows."""
        return None

    def respond(self, memory: LogMemory, request: ChatRequest) -> RemoteReply:
        """Recall for a request, and return the reply."""
        begun = time.perf_counter()
        found = recall_for(memory, request.messages, request.retrieval, request.question)
        seconds = time.perf_counter() - begun
        logs = self._fitting(found.logs)
        texts = [log.text for log in logs]
        if request.retrieval.best_last:
            texts.reverse()
        messages = with_texts(request.messages, texts, request.question)
        body = openai_body(self._name, replace(request, messages=messages))
        return _UpstreamReply(self._model, body, request.timeout, logs, found, seconds)

    def _fitting(self, logs: Sequence[RecalledLog]) -> list[RecalledLog]:
        kept, left = [], self._max_chars
        for log in logs:
            left -= len(log.text)
            if left < 0:
                break
            kept.append(log)
        return kept

    def tokens_of(self, text: str) -> list[int]:
        """Refuse: its server knows."""
        raise SettingsError(f"Only the server of {self._name!r} knows its tokens; ask that one.")

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        """Refuse: its server knows."""
        return len(self.tokens_of(""))


class _UpstreamReply(RemoteReply):
    """The reply of a server that knows nothing of logs."""

    def __init__(
        self,
        model: RemoteModel,
        body: Mapping[str, Any],
        timeout: float | None,
        logs: Sequence[RecalledLog],
        found: SearchResult,
        recall_seconds: float,
    ) -> None:
        super().__init__(model, body, timeout)
        self._logs = logs
        self._found = found
        self._recall_seconds = recall_seconds
        self._first_seconds = 0.0

    async def _aread(self) -> AsyncGenerator[Part, None]:
        begun = time.perf_counter()
        async with aclosing(super()._aread()) as parts:
            async for part in parts:
                self._first_seconds = self._first_seconds or time.perf_counter() - begun
                yield part

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and written; not which of them that server had read for another tenant."""
        return {name: count for name, count in super().usage.items() if isinstance(count, int)}

    def report(self) -> dict[str, Any]:
        """Return which logs were used, as text, and the seconds that it took."""
        logs, first = self._logs, self._recall_seconds + self._first_seconds
        return {
            "log_ids": [log.id for log in logs],
            "scores": [log.score for log in logs],
            "relevance": [log.relevance for log in logs],
            "steps": [log.step for log in logs],
            "without_answer": [log.id for log in logs if log.without_answer],
            "nearest_miss": miss_report(self._found.nearest_miss),
            "form": "text" if logs else None,
            "read_as_text": [log.id for log in logs],
            "injected_tokens": 0,
            "timings": {"recall": self._recall_seconds, "time_to_first_token": first},
        }

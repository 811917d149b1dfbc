"""One call of the gateway's model: recalled for, answered, and captured."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from opentelemetry import trace as telemetry

from lag_integrations.capture.run_metadata import is_own
from lag_integrations.chat.openai_form import MEDIA, media_error, schema_in
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.request import ChatRequest, build_request
from lag_integrations.chat.settings import SAMPLING, ModelSettings
from lag_integrations.errors import LAGError, StoreError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import check_where
from lag_integrations.serving.api_errors import ApiError
from lag_integrations.serving.api_types import (
    ApiMessage,
    ChatCompletionRequest,
    LagOptions,
    TokenizeRequest,
)
from lag_integrations.serving.backends import Backend
from lag_integrations.serving.completion import Completion
from lag_integrations.serving.metrics import Metrics
from lag_integrations.serving.run_capture import CANCELLED, trace_of
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import SOURCES, sources_in
from lag_integrations.traces.storable import storable

logger = logging.getLogger(__name__)
_tracer = telemetry.get_tracer("lag_integrations.serving")

_PASSED_ON = (
    *(*SAMPLING, "stop", "logprobs", "top_logprobs"),
    *("max_tokens", "max_completion_tokens", "tool_choice", "parallel_tool_calls", "cache_salt"),
)
"""Settings of a request that `build_request` knows by the same name."""


@dataclass
class ChatService:
    """Answers with one model, from any number of memories.

    Attributes:
        backend: The model.
        name: Its name for clients.
        settings: What a request does not set.
        timeout: Most seconds of an answer; a request may ask for less.
        most_at_once: Most answers at once; others are refused for now.
        metrics: The counters.
    """

    backend: Backend
    name: str
    settings: ModelSettings
    timeout: float
    most_at_once: int
    metrics: Metrics = field(default_factory=Metrics)
    _running: int = 0

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among the answers that are made at once.

        Raises:
            ApiError: There is none.
        """
        if self._running >= self.most_at_once:
            raise ApiError(
                429,
                f"The server makes {self._running} answers at once, which is its limit; ask again "
                "in a moment.",
                "too_many_requests",
            )
        self._running += 1
        self.metrics.running.set(self._running)
        try:
            yield
        finally:
            self._running -= 1
            self.metrics.running.set(self._running)

    def check_model(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            ApiError: It is.
        """
        if name != self.name:
            raise ApiError(
                404,
                f"There is no model {name!r}; this server has {self.name!r}.",
                "model_not_found",
            )

    def tokenize(self, asked: TokenizeRequest) -> dict[str, Any]:
        """Return the tokens of a text, or how many a conversation has.

        Raises:
            ApiError: Neither or both are given.
            LAGError: The conversation cannot be rendered.
        """
        self.check_model(asked.model)
        if (asked.text is None) == (asked.messages is None):
            raise ApiError(400, "Give either text or messages.")
        if asked.text is not None:
            tokens = self.backend.tokens_of(asked.text)
            return {"count": len(tokens), "token_ids": tokens}
        messages = [_as_message(message) for message in asked.messages or ()]
        return {"count": self.backend.count_tokens(messages, asked.tools or ())}

    async def begin(self, memory: LogMemory, asked: ChatCompletionRequest) -> ChatTurn:
        """Recall for a request, and get ready to answer.

        Raises:
            ApiError: There is no such model.
            LAGError: The request cannot be answered; says why.
        """
        self.check_model(asked.model)
        return await asyncio.to_thread(self._begin, memory, asked)

    def _begin(self, memory: LogMemory, asked: ChatCompletionRequest) -> ChatTurn:
        started_at = datetime.now(timezone.utc)
        _check(asked.lag.where)
        messages = [_as_message(message) for message in asked.messages]
        metadata = dict(asked.metadata or {})
        named = Owner.of(metadata)
        owner = Owner(asked.user or named.user, asked.lag.thread_id or named.thread)
        _check_metadata(metadata, named, owner)
        if asked.user is not None:
            metadata["user_id"] = asked.user
        reply = self.backend.respond(memory, self._request(asked, messages, owner))
        return ChatTurn(self, memory, asked, messages, reply, owner, metadata, started_at)

    def _request(
        self, asked: ChatCompletionRequest, messages: list[Message], owner: Owner
    ) -> ChatRequest:
        lag, form = asked.lag, asked.response_format
        timeout = self.timeout if asked.timeout is None else min(asked.timeout, self.timeout)
        overrides = {
            name: value for name in _PASSED_ON if (value := getattr(asked, name)) is not None
        }
        if overrides.get("top_k") == -1:
            overrides["top_k"] = 0
        return build_request(
            self.settings,
            messages,
            {
                **overrides,
                "timeout": timeout,
                "owner": owner,
                "k": lag.k,
                "min_score": lag.min_score,
                "query": lag.query,
                "where": lag.where,
                "placement": lag.placement,
                "attention_temperature": lag.attention_temperature,
                "missing_segments": lag.missing_segments,
                "best_last": lag.best_last,
                "question": lag.question,
                "kv_log_ids": lag.log_ids,
                "logs_as_text": lag.as_text,
            },
            framework_messages=messages,
            tools=asked.tools or (),
            shown=sources_in({SOURCES: _sources(lag)}),
            said=lag.said,
            schema=None if form is None else schema_in(storable(form.model_dump())),
        )


class ChatTurn:
    """A call while it is answered.

    Args:
        service: Whose model answers.
        memory: Where its logs come from, and its run goes.
        asked: The request.
        messages: Its conversation.
        reply: The model's reply.
        owner: Whose run it is.
        metadata: What the client says of it.
        started_at: When it came.

    Attributes:
        completion: The answer, as far as it came.
        reply: As above.
    """

    def __init__(
        self,
        service: ChatService,
        memory: LogMemory,
        asked: ChatCompletionRequest,
        messages: list[Message],
        reply: Reply,
        owner: Owner,
        metadata: dict[str, Any],
        started_at: datetime,
    ) -> None:
        self.completion = Completion(service.name)
        self.reply = reply
        self._service = service
        self._memory = memory
        self._asked = asked
        self._messages = messages
        self._owner = owner
        self._metadata = metadata
        self._started_at = started_at
        self._run_id = uuid4().hex
        self._log_id: str | None = None
        self._ended = self._recorded = False
        self._recording = threading.Lock()
        self._span = _tracer.start_span(f"chat {service.name}")

    async def deltas(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what each part of the answer adds to it; at its end, the run is recorded.

        Where it fails, or nobody reads on, the run is recorded as far as it came.
        """
        error: BaseException | None = None
        try:
            async for part in self.reply:
                if delta := self.completion.add(part):
                    yield delta
            self._ended = True
            await asyncio.to_thread(self._record)
        except BaseException as caught:
            error = caught if isinstance(caught, Exception) else None
            # Not awaited: who left does not wait.
            asyncio.get_running_loop().run_in_executor(None, self._record, error)
            raise
        finally:
            self._describe(error)
            self._service.metrics.answered(self.reply)
            await self.reply.aclose()

    def report(self) -> dict[str, Any]:
        """Return what ``lag`` says: what was used, and as which run it was captured."""
        run_id = None if self._log_id is None else self._run_id
        return {**self.reply.report(), "run_id": run_id, "log_id": self._log_id}

    def _record(self, error: BaseException | None = None) -> None:
        """Record the run once, if it is over; a memory that fails costs no answer."""
        with self._recording:
            if self._recorded or not self._asked.lag.capture:
                return
            self._recorded = True
        try:
            trace = trace_of(
                self._messages,
                self.completion,
                # It may have ended before who left had read it all.
                self.reply.finish_reason if self._ended else CANCELLED,
                run_id=self._run_id,
                started_at=self._started_at,
                ended_at=datetime.now(timezone.utc),
                helped_by=self.reply.report().get("log_ids", ()),
                owner=self._owner,
                metadata=self._metadata,
                sources=_sources(self._asked.lag),
                error=error,
            )
            if trace is not None:
                (self._log_id,) = self._memory.add_own([trace], judged=False)
                self._service.metrics.captured(trace.outcome)
        except LAGError as problem:
            logger.warning("A run was not captured. %s", problem)

    def _describe(self, error: BaseException | None) -> None:
        """Say in the span what happened, never what was said (GenAI semantic conventions)."""
        if self._span.is_recording():
            report, usage = self.reply.report(), self.reply.usage
            self._span.set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.request.model": self._service.name,
                    "gen_ai.response.finish_reasons": [self.reply.finish_reason],
                    "gen_ai.usage.input_tokens": usage["prompt_tokens"],
                    "gen_ai.usage.output_tokens": usage["completion_tokens"],
                    "lag.logs": len(report["log_ids"]),
                    "lag.form": report["form"] or "none",
                    "lag.first_token_seconds": report["timings"]["time_to_first_token"],
                    **({} if error is None else {"error.type": type(error).__name__}),
                }
            )
        self._span.end()


def _check(where: dict[str, Any] | None) -> None:
    """Refuse a malformed filter as the client's mistake, not the store's."""
    try:
        check_where(where)
    except StoreError as error:
        raise ApiError(400, str(error)) from None


def _sources(lag: LagOptions) -> list[Any]:
    return [source.model_dump() for source in lag.sources]


def _check_metadata(metadata: Mapping[str, Any], named: Owner, owner: Owner) -> None:
    """Refuse metadata that would not be kept, or that name another user or thread."""
    if taken := [key for key in metadata if is_own(key) and key != "thread_id"]:
        raise ApiError(400, f"metadata has the keys {', '.join(taken)}, which the memory sets.")
    if named.user not in (None, owner.user) or named.thread not in (None, owner.thread):
        raise ApiError(400, "metadata names another user or thread than user and lag.thread_id.")


def _as_message(source: ApiMessage) -> Message:
    """Return a message of a request; refuse what a model of texts cannot read."""
    message = as_message(source.model_dump())
    if isinstance(message.content, list):
        kinds = {str(one.get("type")) for one in message.content if isinstance(one, dict)}
        if media := kinds & MEDIA:
            raise media_error(media)
    return message

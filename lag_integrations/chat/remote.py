"""A model that runs elsewhere: a client of `kvlog serve`. It needs no torch."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httpx

from lag_integrations import errors
from lag_integrations.chat.openai_form import call_dict
from lag_integrations.chat.parts import Part
from lag_integrations.chat.request import ChatRequest
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, CallFailed, InvalidCall, Text
from lag_integrations.errors import LAGError, PromptError, RemoteModelError, SettingsError
from lag_integrations.memory.safe_recall import Refused
from lag_integrations.traces.message import Message, ToolCall

_RETRIES = 2
_RETRIED = frozenset((429, 502, 503, 504))
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
_TIMEOUT = 600.0
_CONNECT = 10.0
_DONE = "[DONE]"


class RemoteModel:
    """Asks a model of `kvlog serve`.

    Args:
        settings: Where it is, its name there, and the key that opens a namespace.

    Raises:
        SettingsError: The URL is none.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = _told(settings)
        url, key = settings.base_url or "", settings.api_key
        if not url.startswith(("http://", "https://")):
            raise SettingsError(
                f"base_url={url!r} is no URL; give one like http://127.0.0.1:8321/v1."
            )
        self._url = url.rstrip("/")
        self._model = settings.model
        self._max_retries = _RETRIES if settings.max_retries is None else settings.max_retries
        self._headers = {}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        # Connections belong to the event loop that made them.
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]
        self._async_clients = WeakKeyDictionary()

    def fits(self, settings: ModelSettings) -> bool:
        """Return whether a model with these settings may use it."""
        return self._settings == _told(settings)

    @property
    def fingerprint(self) -> str | None:
        """None: only its server knows."""
        return None

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(headers=self._headers)

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            self._async_clients[loop] = httpx.AsyncClient(headers=self._headers)
        return self._async_clients[loop]

    def close(self) -> None:
        """Close the connections of calls that are not awaited."""
        self._client.close()

    @cached_property
    def window(self) -> int:
        """Usable context of the model, in tokens.

        Raises:
            LAGError: The server cannot say.
        """
        card = self._get(f"/models/{quote(self._model)}")
        return int(card["max_model_len"])

    def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> int:
        """Return the number of tokens of a rendered conversation.

        Raises:
            LAGError: The server cannot say.
        """
        body = {"messages": [_wire(message) for message in messages], "tools": list(tools) or None}
        return int(self._post("/lag/tokenize", body)["count"])

    def token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text.

        Raises:
            LAGError: The server cannot say.
        """
        return [int(token) for token in self._post("/lag/tokenize", {"text": text})["token_ids"]]

    def _get(self, path: str) -> Any:
        return self._asked("GET", path, None)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._asked("POST", path, {**body, "model": self._model})

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            reply = self._client.request(method, self._url + path, json=body, timeout=_CONNECT)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if reply.is_error:
            raise _error_of(reply.status_code, reply.content)
        return reply.json()

    def respond(self, request: ChatRequest) -> RemoteReply:
        """Return the reply to a request; nothing is asked before its first part is.

        Raises:
            PromptError: There is no message to answer.
        """
        if not request.messages:
            raise PromptError("There is no message to answer; give at least one.")
        return RemoteReply(self, _body(self._model, request), request.timeout)

    def lines(self, body: Mapping[str, Any], timeout: float) -> Iterator[str]:
        """Yield the lines of a stream.

        Raises:
            LAGError: The server refuses, or cannot be reached.
            TimeoutError: It took too long.
        """
        end, attempt = time.monotonic() + timeout, 0
        while True:
            try:
                with self._client.stream(
                    "POST", f"{self._url}/chat/completions", json=body, timeout=_limits(timeout)
                ) as reply:
                    if not reply.is_error:
                        yield from reply.iter_lines()
                        return
                    failure: Exception = _error_of(reply.status_code, reply.read())
                    again = reply.status_code in _RETRIED
            except httpx.ConnectError as error:
                failure, again = self._unreachable(error), True
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            wait = _wait(attempt)
            if not again or attempt >= self._max_retries or time.monotonic() + wait > end:
                raise failure
            attempt += 1
            time.sleep(wait)

    async def alines(self, body: Mapping[str, Any], timeout: float) -> AsyncIterator[str]:
        """Yield the lines of a stream; see `lines`."""
        end, attempt = time.monotonic() + timeout, 0
        while True:
            try:
                async with self._async_client().stream(
                    "POST", f"{self._url}/chat/completions", json=body, timeout=_limits(timeout)
                ) as reply:
                    if not reply.is_error:
                        async for line in reply.aiter_lines():
                            yield line
                        return
                    failure: Exception = _error_of(reply.status_code, await reply.aread())
                    again = reply.status_code in _RETRIED
            except httpx.ConnectError as error:
                failure, again = self._unreachable(error), True
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            wait = _wait(attempt)
            if not again or attempt >= self._max_retries or time.monotonic() + wait > end:
                raise failure
            attempt += 1
            await asyncio.sleep(wait)

    def _unreachable(self, error: httpx.HTTPError) -> Exception:
        if isinstance(error, httpx.ReadTimeout):
            return TimeoutError(f"{self._url} did not answer in time.")
        return RemoteModelError(
            f"{self._url} cannot be reached ({type(error).__name__}: {error}). Is `kvlog serve` "
            "running there?"
        )


def _told(settings: ModelSettings) -> tuple[Any, ...]:
    return settings.base_url, settings.model, settings.api_key, settings.max_retries


def refuse_foreign_logs(memory: object) -> None:
    """Refuse logs of a memory here as the KV of a model that runs elsewhere.

    Args:
        memory: Where the logs are from; None if it is the server's.

    Raises:
        SettingsError: It is one here.
    """
    if memory is not None:
        raise SettingsError(
            "The logs are of a memory here, and the model runs elsewhere: give them as text "
            "(as_text=True), or leave the memory out, since the server has one."
        )


class RemoteReply(Iterator[Part], AsyncIterator[Part]):
    """The reply of a server; see `Reply`.

    Args:
        model: Who is asked.
        body: The request.
        timeout: Most seconds until it is whole.
    """

    def __init__(self, model: RemoteModel, body: Mapping[str, Any], timeout: float | None) -> None:
        self._model = model
        self._body = body
        self._timeout = timeout or _TIMEOUT
        self._reader = _StreamReader()
        self._parts: Iterator[Part] | None = None
        self._async_parts: AsyncIterator[Part] | None = None

    def __next__(self) -> Part:
        if self._parts is None:
            self._parts = self._read()
        return next(self._parts)

    async def __anext__(self) -> Part:
        if self._async_parts is None:
            self._async_parts = self._aread()
        return await anext(self._async_parts)

    def _read(self) -> Iterator[Part]:
        for line in self._model.lines(self._body, self._timeout):
            yield from self._reader.feed(line)
        yield from self._reader.finish()

    async def _aread(self) -> AsyncIterator[Part]:
        async for line in self._model.alines(self._body, self._timeout):
            for part in self._reader.feed(line):
                yield part
        for part in self._reader.finish():
            yield part

    def close(self) -> None:
        """Close the connection, which stops the model."""
        if self._parts is not None:
            self._parts.close()  # type: ignore[attr-defined]

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        reason = self._reader.finish_reason
        return "stop" if reason == "tool_calls" else reason

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and written."""
        return self._reader.usage

    @property
    def logprobs(self) -> list[dict[str, Any]] | None:
        """Log probabilities of each token."""
        return self._reader.logprobs

    def report(self) -> dict[str, Any]:
        """Return what the server says that it used."""
        return self._reader.report


class _StreamReader:
    """Takes a stream of server-sent events apart."""

    def __init__(self) -> None:
        self.finish_reason = "cancelled"
        self.usage: dict[str, Any] = dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "total_tokens"), 0
        )
        self.logprobs: list[dict[str, Any]] | None = None
        self.report: dict[str, Any] = {}
        self._call: dict[str, Any] | None = None
        self._calls = 0
        self._done = False

    def feed(self, line: str) -> Iterator[Part]:
        """Yield the parts that a line completes."""
        if not line.startswith("data:"):
            return
        data = line[5:].strip()
        if data == _DONE:
            self._done = True
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise _error_of(500, data.encode())
        self.usage = chunk.get("usage") or self.usage
        self.report = chunk.get("lag") or self.report
        for choice in chunk.get("choices") or ():
            yield from self._delta(choice.get("delta") or {})
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if (found := choice.get("logprobs")) is not None:
                self.logprobs = [*(self.logprobs or ()), *found["content"]]

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Part]:
        if thought := delta.get("reasoning_content"):
            yield ReasoningDelta(thought)
        if text := delta.get("content"):
            yield Text(text)
        for piece in delta.get("tool_calls") or ():
            function = piece.get("function") or {}
            if self._call is None or piece["index"] != self._call["index"]:
                yield from self._end_call()
                self._call = {"index": piece["index"], "name": "", "arguments": ""}
            self._call["name"] += function.get("name") or ""
            self._call["arguments"] += function.get("arguments") or ""

    def _end_call(self) -> Iterator[Part]:
        if (call := self._call) is None:
            return
        self._call, index = None, self._calls
        self._calls += 1
        try:
            args = json.loads(call["arguments"] or "{}")
        except (ValueError, RecursionError):
            args = None
        if call["name"] and isinstance(args, dict):
            yield CallEnded(index, ToolCall(name=call["name"], args=args))
        else:
            error = "The call cannot be read."
            yield CallFailed(index, InvalidCall(call["name"] or None, call["arguments"], error))

    def finish(self) -> Iterator[Part]:
        """Yield what is left at the end.

        Raises:
            RemoteModelError: The stream broke off.
        """
        if not self._done:
            raise RemoteModelError("The server's answer broke off; ask again.")
        yield from self._end_call()


def openai_body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as any server with OpenAI's API takes it.

    Args:
        model: Name of the model there.
        request: The request.
    """
    output = request.output
    body: dict[str, Any] = {
        "model": model,
        "messages": [_wire(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "stop": list(request.stop) or None,
        "tools": list(output.tools) or None,
        "tool_choice": "required" if output.tool_choice is True else output.tool_choice or None,
        "parallel_tool_calls": None if output.parallel_tool_calls else False,
        **request.sampling,
    }
    if request.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if output.schema is not None:
        schema = {"name": "answer", "schema": output.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {name: value for name, value in body.items() if value is not None}


def _body(model: str, request: ChatRequest) -> dict[str, Any]:
    """Return a request as `kvlog serve` takes it."""
    retrieval = request.retrieval
    where, k = retrieval.where, retrieval.k
    if isinstance(where, Refused):
        where.nothing()  # says why
        where, k = None, 0
    lag = {
        "k": k,
        "min_score": retrieval.min_score,
        "query": retrieval.query,
        "where": where,
        "log_ids": None if retrieval.log_ids is None else list(retrieval.log_ids),
        "as_text": retrieval.as_text,
        "best_last": retrieval.best_last,
        "missing_segments": retrieval.missing,
        "question": request.question,
        "placement": request.placement,
        "attention_temperature": request.attention_temperature,
        "thread_id": retrieval.owner.thread,
    }
    told = {
        "timeout": request.timeout,
        "cache_salt": request.cache_salt or None,
        "user": retrieval.owner.user,
        "lag": {name: value for name, value in lag.items() if value is not None},
    }
    body = openai_body(model, request)
    return body | {name: value for name, value in told.items() if value is not None}


def _wire(message: Message) -> dict[str, Any]:
    """Return a message in OpenAI's form."""
    found = message.model_dump(exclude={"tool_calls", "id"}, exclude_none=True)
    if message.tool_calls:
        found["tool_calls"] = [
            call_dict(call.name, call.args, call.id or "") for call in message.tool_calls
        ]
    return found


def _error_of(status: int, content: bytes) -> Exception:
    """Return a server's error as what it would be here."""
    try:
        said = json.loads(content)["error"]
        message, code = str(said["message"]), str(said.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return RemoteModelError(f"The server answered with status {status}, and no reason.")
    if status == 408:
        return TimeoutError(message)
    kind = getattr(errors, code, None)
    if isinstance(kind, type) and issubclass(kind, LAGError):
        return kind(message)
    return RemoteModelError(f"The server refused: {message}" if status < 500 else message)


def _limits(timeout: float) -> httpx.Timeout:
    # A little more than the server takes, which says why.
    return httpx.Timeout(timeout + 1, connect=min(timeout, _CONNECT))


def _wait(attempt: int) -> float:
    wait: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt)
    return wait * random.uniform(0.75, 1.25)

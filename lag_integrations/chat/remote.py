"""A model that runs elsewhere: a client of `kvlog serve`. It needs no torch."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx

from lag_integrations.chat.parts import Part
from lag_integrations.chat.request import ChatRequest
from lag_integrations.chat.request_body import gateway_body, message_dict
from lag_integrations.chat.server_events import EventReader, LineSplitter, error_of
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.errors import PromptError, RemoteModelError, SettingsError
from lag_integrations.traces.message import Message

_RETRIES = 2
_RETRIED = frozenset((429, 502, 503, 504))
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0
_TIMEOUT = 600.0
_GRACE = 1.0
_WINDOW = 3_900
"""Tokens, as LlamaIndex guesses, too."""
_NO_LIMITS = httpx.Limits(max_connections=None)
_NOT_BEGUN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CONNECT = 10.0


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
        self._async_clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def fits(self, settings: ModelSettings) -> bool:
        """Return whether a model with these settings may use it."""
        return self._settings == _told(settings)

    @property
    def fingerprint(self) -> str | None:
        """None: only its server knows."""
        return None

    @cached_property
    def _client(self) -> httpx.Client:
        return httpx.Client(headers=self._headers, limits=_NO_LIMITS)

    def _async_client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        for other in [one for one in self._async_clients if one.is_closed()]:
            self._async_clients.pop(other, None)  # its connections ended with it
        if loop not in self._async_clients:
            self._async_clients[loop] = httpx.AsyncClient(headers=self._headers, limits=_NO_LIMITS)
        return self._async_clients[loop]

    def close(self) -> None:
        """Close the connections of calls that are not awaited; the next call opens others."""
        if (client := self.__dict__.pop("_client", None)) is not None:
            client.close()

    @cached_property
    def window(self) -> int:
        """Usable context of the model, in tokens; a careful guess if its server does not say.

        Raises:
            LAGError: The server cannot be asked.
        """
        card = self._get(f"/models/{quote(self._model)}")
        return int(card.get("max_model_len") or _WINDOW)

    def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> int:
        """Return the number of tokens of a rendered conversation.

        Raises:
            LAGError: The server cannot say.
        """
        body = {
            "messages": [message_dict(message, status=True) for message in messages],
            "tools": list(tools) or None,
        }
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
            raise error_of(reply.status_code, reply.content)
        return reply.json()

    def respond(self, request: ChatRequest) -> RemoteReply:
        """Return the reply to a request; nothing is asked before its first part is.

        Raises:
            PromptError: There is no message to answer.
        """
        if not request.messages:
            raise PromptError("There is no message to answer; give at least one.")
        return RemoteReply(self, gateway_body(self._model, request), request.timeout)

    def lines(self, body: Mapping[str, Any], timeout: float) -> Iterator[str]:
        """Yield the lines of a stream.

        Raises:
            LAGError: The server refuses, or cannot be reached.
            TimeoutError: It took too long.
        """
        end, attempt, lines = time.monotonic() + timeout, 0, LineSplitter()
        while True:
            try:
                with self._client.stream("POST", self._chat, **_sent(body, end)) as reply:
                    if not reply.is_error:
                        for data in reply.iter_bytes():
                            self._check_time(end)
                            yield from lines.feed(data)
                        return
                    failure: Exception = error_of(reply.status_code, reply.read())
                    again = reply.status_code in _RETRIED
            except _NOT_BEGUN as error:
                failure, again = self._unreachable(error), True
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            wait = self._wait(failure, attempt if again else self._max_retries, end)
            attempt += 1
            time.sleep(wait)

    async def alines(self, body: Mapping[str, Any], timeout: float) -> AsyncGenerator[str, None]:
        """Yield the lines of a stream; see `lines`."""
        end, attempt, lines = time.monotonic() + timeout, 0, LineSplitter()
        while True:
            try:
                client = self._async_client()
                async with client.stream("POST", self._chat, **_sent(body, end)) as reply:
                    if not reply.is_error:
                        async for data in reply.aiter_bytes():
                            self._check_time(end)
                            for line in lines.feed(data):
                                yield line
                        return
                    failure: Exception = error_of(reply.status_code, await reply.aread())
                    again = reply.status_code in _RETRIED
            except _NOT_BEGUN as error:
                failure, again = self._unreachable(error), True
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            wait = self._wait(failure, attempt if again else self._max_retries, end)
            attempt += 1
            await asyncio.sleep(wait)

    @property
    def _chat(self) -> str:
        return f"{self._url}/chat/completions"

    def _wait(self, failure: Exception, attempt: int, end: float) -> float:
        """Return the seconds until the next attempt; raise the failure if there is none."""
        wait: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.25)
        if attempt >= self._max_retries or time.monotonic() + wait > end:
            raise failure
        return wait

    def _check_time(self, end: float) -> None:
        """Refuse an answer that takes too long, whatever its server sends meanwhile."""
        if time.monotonic() > end + _GRACE:
            raise TimeoutError(f"The answer of {self._model!r} was not whole in time.")

    def _unreachable(self, error: httpx.HTTPError) -> Exception:
        url = httpx.URL(self._url).copy_with(userinfo=b"")
        if isinstance(error, httpx.TimeoutException):
            return TimeoutError(f"{url} did not answer in time.")
        return RemoteModelError(
            f"{url} cannot be reached ({type(error).__name__}: {error}). Is `kvlog serve` "
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
            "The logs are of a memory here, and the model runs elsewhere. Leave that memory out, "
            "since the server has one; or have it put its logs in as text "
            "(LAGMemory(memory, as_text=True), memory.middleware(as_text=True))."
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
        self._timeout = _TIMEOUT if timeout is None else timeout
        self._reader = EventReader()
        self._parts: Generator[Part, None, None] | None = None
        self._async_parts: AsyncGenerator[Part, None] | None = None

    def __next__(self) -> Part:
        if self._parts is None:
            self._parts = self._read()
        return next(self._parts)

    async def __anext__(self) -> Part:
        if self._async_parts is None:
            self._async_parts = self._aread()
        return await anext(self._async_parts)

    def _read(self) -> Generator[Part, None, None]:
        for line in self._model.lines(self._body, self._timeout):
            yield from self._reader.feed(line)
        yield from self._reader.finish()

    async def _aread(self) -> AsyncGenerator[Part, None]:
        async with aclosing(self._model.alines(self._body, self._timeout)) as lines:
            async for line in lines:
                for part in self._reader.feed(line):
                    yield part
        for part in self._reader.finish():
            yield part

    def close(self) -> None:
        """Close the connection, which stops the model."""
        if self._parts is not None:
            self._parts.close()

    async def aclose(self) -> None:
        """Close the connection, which stops the model."""
        self.close()
        if self._async_parts is not None:
            await self._async_parts.aclose()

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


def _sent(body: Mapping[str, Any], end: float) -> dict[str, Any]:
    """Return the arguments of a request that may take until a time."""
    left = max(0.001, end - time.monotonic())
    # A little more than the server takes, which says why.
    return {"json": body, "timeout": httpx.Timeout(left + _GRACE, connect=min(left, _CONNECT))}

"""Routes of OpenAI's API: chat completions and models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from lag_integrations.serving.api_errors import ApiError, AsciiResponse, error_body
from lag_integrations.serving.api_types import ChatCompletionRequest, TokenizeRequest
from lag_integrations.serving.chat_service import ChatService, ChatTurn
from lag_integrations.serving.gateway import Memory, Service, WhoAsks

routes = APIRouter(prefix="/v1")
_CLIENT_LEFT = 499


@routes.get("/models")
async def models(service: Service, _: WhoAsks) -> dict[str, Any]:
    """List the one model."""
    return {"object": "list", "data": [_card(service)]}


@routes.get("/models/{name:path}")
async def model(name: str, service: Service, _: WhoAsks) -> dict[str, Any]:
    """Describe the model."""
    service.check_model(name)
    return _card(service)


def _card(service: ChatService) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "lag",
        "max_model_len": service.backend.window,
    }


@routes.post("/lag/tokenize")
async def tokenize(asked: TokenizeRequest, service: Service, _: WhoAsks) -> dict[str, Any]:
    """Return the tokens of a text, or how many a conversation has."""
    with service.admitted():
        return await asyncio.to_thread(service.tokenize, asked)


@routes.post("/chat/completions", response_model=None)
async def chat_completions(
    asked: ChatCompletionRequest, request: Request, service: Service, memory: Memory
) -> Response:
    """Answer a conversation, with the help of what was done before."""
    async with AsyncExitStack() as stack:
        stack.enter_context(service.admitted())
        turn = await service.begin(memory, asked)
        deltas = turn.deltas()
        if not asked.stream:
            await _unless_left(request, _read(deltas))
            document = turn.completion.whole(turn.reply, turn.report())
            return AsciiResponse(document)
        # An error before the first token is a status, not an event.
        first = await _unless_left(request, anext(deltas, {}))
        events = _events(turn, first, deltas, asked, stack.pop_all())
        # It is begun, so that it ends well even if nobody reads it.
        opening = await anext(events)
        return StreamingResponse(
            _rest(opening, events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )


async def _read(deltas: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    async for _ in deltas:
        pass
    return {}


async def _unless_left(request: Request, reading: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """Wait for a part of an answer; where the client leaves, the model stops.

    Raises:
        ApiError: It left; nobody is told.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    read, leave = asyncio.ensure_future(reading), asyncio.ensure_future(left())
    try:
        await asyncio.wait((read, leave), return_when=asyncio.FIRST_COMPLETED)
        if not read.done():
            raise ApiError(_CLIENT_LEFT, "The client left.")
        return read.result()
    finally:
        for task in (read, leave):
            task.cancel()
        await asyncio.gather(read, leave, return_exceptions=True)


async def _events(
    turn: ChatTurn,
    first: dict[str, Any],
    deltas: AsyncGenerator[dict[str, Any], None],
    asked: ChatCompletionRequest,
    held: AsyncExitStack,
) -> AsyncGenerator[bytes, None]:
    """Yield an answer as server-sent events."""
    async with held, aclosing(deltas):
        completion = turn.completion
        yield _event(completion.chunk({"role": "assistant", "content": ""}))
        try:
            if first:
                yield _event(completion.chunk(first))
            async for delta in deltas:
                yield _event(completion.chunk(delta))
            with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
            for chunk in completion.last_chunks(turn.reply, turn.report(), with_usage=with_usage):
                yield _event(chunk)
        except Exception as error:
            yield _event(error_body(error))
        yield b"data: [DONE]\n\n"


async def _rest(opening: bytes, events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    async with aclosing(events):
        yield opening
        async for event in events:
            yield event


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + _json(document) + b"\n\n"


def _json(document: dict[str, Any]) -> bytes:
    # In ASCII: what a model writes can hold half a character, or what others take for a line's end.
    return json.dumps(document).encode()

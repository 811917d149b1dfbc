"""Routes of OpenAI's API: chat completions and models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from lag_integrations.serving.api_errors import error_body
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
    return await asyncio.to_thread(service.tokenize, asked)


@routes.post("/chat/completions", response_model=None)
async def chat_completions(
    asked: ChatCompletionRequest, request: Request, service: Service, memory: Memory
) -> Response:
    """Answer a conversation, with the help of what was done before."""
    async with AsyncExitStack() as stack:
        stack.enter_context(service.admitted())
        turn = await service.begin(memory, asked)
        if not asked.stream:
            return await _whole(turn, service, request)
        deltas = turn.deltas()
        # An error before the first token is a status, not an event.
        first: dict[str, Any] = await anext(deltas, {})
        events = _events(turn, first, deltas, asked, service, stack.pop_all())
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )


async def _whole(turn: ChatTurn, service: ChatService, request: Request) -> Response:
    """Return the whole answer; where the client leaves, the model stops."""

    async def read() -> None:
        async for _ in turn.deltas():
            pass

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reading, leaving = asyncio.create_task(read()), asyncio.create_task(left())
    try:
        await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return Response(status_code=_CLIENT_LEFT)
        reading.result()
    finally:
        for task in (reading, leaving):
            task.cancel()
        await asyncio.gather(reading, leaving, return_exceptions=True)
    document = turn.completion.whole(turn.reply, turn.report())
    return Response(_json(document), media_type="application/json")


async def _events(
    turn: ChatTurn,
    first: dict[str, Any],
    deltas: AsyncIterator[dict[str, Any]],
    asked: ChatCompletionRequest,
    service: ChatService,
    held: AsyncExitStack,
) -> AsyncIterator[bytes]:
    """Yield an answer as server-sent events."""
    async with held:
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


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + _json(document) + b"\n\n"


def _json(document: dict[str, Any]) -> bytes:
    # What a model writes can hold half a character.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")

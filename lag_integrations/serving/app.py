"""The web application of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response

from lag_integrations.serving import api_errors, chat_api, logs_api
from lag_integrations.serving.api_errors import ApiError, as_response
from lag_integrations.serving.body_limit import BodyLimit
from lag_integrations.serving.gateway import Gateway, Service, WhoAsks

_MOST_BYTES = 16 * 2**20
_OPEN = ("/health", "/openapi.json")
"""What is told without a key."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def create_app(
    gateway: Gateway, *, most_bytes: int = _MOST_BYTES, hosts: Sequence[str] = LOOPBACK
) -> FastAPI:
    """Return the application.

    Args:
        gateway: The model and its memories, which are closed with the application.
        most_bytes: Largest body of a request.
        hosts: Without API keys, names that requests may call the server by. It keeps web pages from
            asking under a name of theirs (DNS rebinding).
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(gateway.memories.close)

    app = FastAPI(
        title="lag_integrations gateway",
        version=version("lag_integrations"),
        lifespan=lifespan,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.gateway = gateway
    api_errors.register(app)
    app.include_router(chat_api.routes)
    app.include_router(logs_api.routes)
    app.add_middleware(BodyLimit, most_bytes=most_bytes)
    if gateway.keys is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_api_route("/health", _health)
    app.add_api_route("/metrics", _metrics)

    @app.middleware("http")
    async def counted(
        request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        try:
            _check_form(request)
            if request.url.path not in _OPEN:  # before the body is read
                gateway.tenant(request.headers.get("authorization"))
            response = await answer(request)
        except Exception as error:
            response = as_response(error)
        route = getattr(request.scope.get("route"), "path", "unknown")
        gateway.service.metrics.request(route, response.status_code)
        return response

    return app


def _check_form(request: Request) -> None:
    """Refuse what a web page could send without being asked for its permission."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json":
        raise ApiError(415, "Send JSON, and say so: `Content-Type: application/json`.")


async def _health() -> dict[str, str]:
    """Say that the model is loaded and requests are answered."""
    return {"status": "ok"}


async def _metrics(service: Service, who: WhoAsks) -> Response:
    """Return the server's counters in Prometheus' form."""
    if not who.metrics:
        raise ApiError(403, 'This key may not read metrics; give it `"metrics": true`.')
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

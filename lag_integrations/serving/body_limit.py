"""A limit for the body of a request, whatever it says of its length."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lag_integrations.serving.api_errors import ApiError, as_response


class BodyLimit:
    """ASGI middleware that refuses larger bodies before they are read.

    Args:
        app: The application.
        most_bytes: The limit.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        told = headers.get(b"content-length", b"0")
        read = int(told) if told.isdigit() else 0
        if read > self._most_bytes:
            await self._refuse(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_bytes:
                raise ValueError("The body is too large.")
            return message

        async def guarded(message: Message) -> None:
            if read <= self._most_bytes:
                await send(message)

        await self._app(scope, limited, guarded)
        if read > self._most_bytes:  # whatever the application made of the error
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"The request is larger than {self._most_bytes} bytes, which is the limit."
        await as_response(ApiError(413, message))(scope, receive, send)

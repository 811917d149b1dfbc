"""Errors of the gateway, in the form of OpenAI's API."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from lag_integrations.errors import (
    BusyError,
    ConstraintError,
    ContextWindowError,
    LAGError,
    LogNotFoundError,
    PromptError,
    RemoteModelError,
    SettingsError,
    StoreError,
    TraceError,
)

logger = logging.getLogger(__name__)

_STATUS: Sequence[tuple[type[BaseException], int]] = (
    (LogNotFoundError, 404),
    (TimeoutError, 408),
    (BusyError, 503),
    (RemoteModelError, 502),
    (PromptError, 400),
    (SettingsError, 400),
    (ConstraintError, 400),
    (ContextWindowError, 400),
    (TraceError, 400),
    (StoreError, 503),
)
"""The first that fits counts."""
_PASSED_ON = (400, 413, 422, 429)
"""Refusals of an upstream server that are the client's to mend."""
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_LONGEST = 2_000


class AsciiResponse(JSONResponse):
    """A JSON document in ASCII: it may hold half characters, and whoever reads it any encoding."""

    def render(self, content: Any) -> bytes:
        """Write the document."""
        return json.dumps(content).encode()


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        code: What programs know it by.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, RemoteModelError) and error.status in _PASSED_ON:
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(error: BaseException) -> dict[str, Any]:
    """Return what a client is told of an error; of one that nobody foresaw, its kind alone.

    The message of such an error may repeat a prompt, so the log has it at DEBUG only.
    """
    status = status_of(error)
    known = isinstance(error, ApiError | LAGError | TimeoutError)
    if isinstance(error, RemoteModelError) and status not in _PASSED_ON:
        # It names the server, and may hold a part of its key.
        logger.warning("The upstream server failed. %s", error)
        message = "The upstream server cannot be reached, or failed; the log here says more."
    elif known and str(error):
        message = str(error)
    else:
        logger.error("A request failed (%s).", type(error).__name__)
        logger.debug("A request failed.", exc_info=error)
        message = f"The server failed ({type(error).__name__}); its log says more at DEBUG."
    # Our own errors by name, so that our clients raise the same.
    name = type(error).__name__ if isinstance(error, LAGError | TimeoutError) else None
    return _body(status, message, getattr(error, "code", name))


def _body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}…"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def as_response(error: BaseException) -> JSONResponse:
    """Return the reply to a request that failed."""
    headers = {"WWW-Authenticate": "Bearer"} if status_of(error) == 401 else None
    return AsciiResponse(error_body(error), status_of(error), headers)


def register(app: FastAPI) -> None:
    """Have an app answer all errors in this form."""

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input values: they are prompts.
        said = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}"
            for one in error.errors()[:8]
        )
        return as_response(ApiError(400, f"The request is not valid: {said}."))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return AsciiResponse(
            _body(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    async def _other(_: Request, error: Exception) -> JSONResponse:
        return as_response(error)

    for kind in (ApiError, LAGError, TimeoutError):
        app.add_exception_handler(kind, _other)

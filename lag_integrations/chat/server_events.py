"""The answer of a server with OpenAI's API, event by event, and its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lag_integrations import errors
from lag_integrations.chat.parts import Part
from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, CallFailed, InvalidCall, Text
from lag_integrations.errors import LAGError, RemoteModelError
from lag_integrations.traces.message import ToolCall

_DONE = "[DONE]"


class EventReader:
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
            raise error_of(500, data.encode())
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


def error_of(status: int, content: bytes) -> Exception:
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

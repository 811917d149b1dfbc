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
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            raise RemoteModelError("The server's answer is no JSON.") from None
        if chunk.get("error"):
            raise error_of(500, data.encode())
        self.usage = chunk.get("usage") or self.usage
        self.report = chunk.get("lag") or self.report
        for choice in chunk.get("choices") or ():
            yield from self._delta(choice.get("delta") or {})
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if found := (choice.get("logprobs") or {}).get("content"):
                self.logprobs = [*(self.logprobs or ()), *found]

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Part]:
        if thought := delta.get("reasoning_content"):
            yield ReasoningDelta(thought)
        if text := delta.get("content"):
            yield Text(text)
        for piece in delta.get("tool_calls") or ():
            function = piece.get("function") or {}
            index, id = piece.get("index", self._calls), piece.get("id")
            # Some servers give each call the index 0, and an id of its own.
            is_new = self._call is None or index != self._call["index"]
            if is_new or (id and self._call and id != self._call["id"]):
                yield from self._end_call()
                self._call = {"index": index, "id": id, "name": "", "arguments": "", "error": None}
            assert self._call is not None
            self._call["error"] = piece.get("error") or self._call["error"]
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
        if call["name"] and isinstance(args, dict) and not call["error"]:
            yield CallEnded(index, ToolCall(name=call["name"], args=args))
        else:
            error = call["error"] or "The call cannot be read."
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
        return RemoteModelError(
            f"The server answered with status {status}, and no reason.", status=status
        )
    if status == 408 or code == TimeoutError.__name__:
        return TimeoutError(message)
    kind = getattr(errors, code, None)
    if isinstance(kind, type) and issubclass(kind, LAGError):
        return kind(message)
    return RemoteModelError(
        f"The server refused: {message}" if status < 500 else message, status=status
    )


class LineSplitter:
    """Splits a stream of bytes at line feeds alone: texts may hold other ends of lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that some bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines]

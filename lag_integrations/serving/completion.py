"""An answer in the form of OpenAI's API: whole, or chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from lag_integrations.chat.openai_form import call_dict
from lag_integrations.chat.parts import Part
from lag_integrations.chat.reply import Reply
from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, Text, new_call_id


class Completion:
    """Collects the parts of an answer.

    Args:
        model: Name of the model.

    Attributes:
        text: What was said.
        thoughts: What was thought before.
        calls: The tool calls.
        unreadable: Whether a call could not be read.
    """

    def __init__(self, model: str) -> None:
        self.text = self.thoughts = ""
        self.calls: list[dict[str, Any]] = []
        self.unreadable = False
        self._shared = {
            "id": f"chatcmpl-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def add(self, part: Part) -> dict[str, Any]:
        """Take a part, and return it as a chunk's delta; empty if there is nothing to say."""
        if isinstance(part, Text):
            self.text += part.text
            return {"content": part.text}
        if isinstance(part, ReasoningDelta):
            self.thoughts += part.text
            return {"reasoning_content": part.text}
        if isinstance(part, CallEnded):
            call = call_dict(part.call.name, part.call.args, new_call_id())
        else:
            self.unreadable = True
            # As it was written, so that the client sees that it cannot be read.
            call = call_dict(part.invalid.name or "", part.invalid.args, new_call_id())
            call["error"] = part.invalid.error
        self.calls.append(call)
        return {"tool_calls": [{"index": len(self.calls) - 1, **call}]}

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message of a conversation."""
        content = self.text or (None if self.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self.calls:
            message["tool_calls"] = self.calls
        if self.thoughts:
            message["reasoning_content"] = self.thoughts
        return message

    def finish_reason(self, reply: Reply) -> str:
        """Return why the answer ended."""
        reason = reply.finish_reason
        return "tool_calls" if self.calls and reason == "stop" else reason

    def whole(self, reply: Reply, report: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer.

        Args:
            reply: The reply that it was read from.
            report: What ``lag`` says.
        """
        choice = {
            "index": 0,
            "message": self.message,
            "finish_reason": self.finish_reason(reply),
            "logprobs": _content(reply.logprobs),
        }
        return {
            **self._shared,
            "object": "chat.completion",
            "choices": [choice],
            "usage": reply.usage,
            "lag": report,
        }

    def chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk of a stream."""
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])

    def last_chunks(
        self,
        reply: Reply,
        report: dict[str, Any],
        *,
        with_usage: bool,
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks that end a stream."""
        choice = {
            "index": 0,
            "delta": {},
            "finish_reason": self.finish_reason(reply),
            "logprobs": _content(reply.logprobs),
        }
        yield {**self._chunk([choice]), "lag": report}
        if with_usage:
            yield {**self._chunk([]), "usage": reply.usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._shared, "object": "chat.completion.chunk", "choices": choices}


def _content(logprobs: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if logprobs is None else {"content": logprobs}

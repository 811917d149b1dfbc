"""Converts LlamaIndex's messages to the package's, and a model's response to LlamaIndex's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitableBlock,
    CitationBlock,
    ContentBlock,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from lag_integrations.chat.openai_form import call_dict, media_error
from lag_integrations.chat.parts import Part
from lag_integrations.chat.reply import Reply
from lag_integrations.engine.generation.reasoning import ReasoningDelta
from lag_integrations.engine.tools import CallEnded, Text, new_call_id
from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.message_conversion import as_message

ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.FUNCTION: "tool",
    MessageRole.TOOL: "tool",
}
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
"""What LlamaIndex's token counters look for."""


def as_chat(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return a conversation as the package's messages.

    Raises:
        PromptError: It holds images or other media, which a text model cannot read.
        TraceError: A message is malformed.
    """
    return [_as_message(message) for message in messages]


def _as_message(message: ChatMessage) -> Message:
    return as_message(
        {
            "role": ROLES[message.role],
            "content": text_in(message, _refuse),
            "tool_calls": calls_in(message),
            "tool_call_id": message.additional_kwargs.get("tool_call_id"),
            "name": message.additional_kwargs.get("name"),
        }
    )


def calls_in(message: ChatMessage) -> list[Any]:
    """Return the tool calls of a message, as `as_message` takes them."""
    named = [_as_call(block) for block in message.blocks if isinstance(block, ToolCallBlock)]
    # Other integrations' messages, of before there were blocks for calls.
    return named or [_plain(call) for call in message.additional_kwargs.get("tool_calls") or ()]


def _as_call(block: ToolCallBlock) -> ToolCall:
    return ToolCall(name=block.tool_name, args=block.tool_kwargs, id=block.tool_call_id)


def _plain(call: Any) -> Any:
    return call.model_dump() if hasattr(call, "model_dump") else call


def text_in(message: ChatMessage, media: Callable[[str], str]) -> str:
    """Return the text of a message.

    Args:
        message: The message.
        media: Returns what stands for content that is no text, given its type.
    """
    return "\n".join(text for block in message.blocks for text in _texts(block, media))


def _texts(block: ContentBlock, media: Callable[[str], str]) -> Iterator[str]:
    if isinstance(block, TextBlock):
        yield block.text
    elif isinstance(block, CitableBlock):
        for inner in block.content:
            yield from _texts(inner, media)
    elif isinstance(block, CitationBlock):
        yield from _texts(block.cited_content, media)
    elif block.block_type in ("image", "audio", "video", "document"):
        yield media(block.block_type)


def _refuse(media: str) -> str:
    raise media_error((media,))


class ReplyBuilder:
    """Builds the reply to a chat from its parts.

    Args:
        reply: The reply that the parts are of.
        model: Name of the model.
    """

    def __init__(self, reply: Reply, model: str) -> None:
        self._reply = reply
        self._model = model
        self._text = self._thoughts = ""
        self._calls: list[ToolCallBlock] = []
        self._invalid: list[dict[str, Any]] = []

    def add(self, part: Part) -> None:
        """Add the next part."""
        if isinstance(part, Text):
            self._text += part.text
        elif isinstance(part, ReasoningDelta):
            self._thoughts += part.text
        elif isinstance(part, CallEnded):
            name, args, id = part.call.name, part.call.args, new_call_id()
            self._calls.append(ToolCallBlock(tool_name=name, tool_kwargs=args, tool_call_id=id))
        else:
            self._invalid.append(asdict(part.invalid))

    def more(self, part: Part) -> ChatResponse:
        """Add the next part, and return the reply up to it."""
        self.add(part)
        delta = part.text if isinstance(part, Text) else ""
        extra = {"thinking_delta": part.text} if isinstance(part, ReasoningDelta) else {}
        return ChatResponse(message=self._message(), delta=delta, additional_kwargs=extra)

    def end(self, run_id: str | None) -> ChatResponse:
        """Return the whole reply, with what is known at its end.

        Args:
            run_id: The captured run that it belongs to.
        """
        usage = self._reply.usage
        chat_response = ChatResponse(
            message=self._message(),
            delta="",
            raw={
                "model": self._model,
                "finish_reason": self._reply.finish_reason,
                "usage": usage,
                "lag": _with_run(self._reply.report(), run_id),
            },
            additional_kwargs={name: usage[name] for name in _COUNTS},
        )
        if (logprobs := self._reply.logprobs) is not None:
            chat_response.logprobs = [_logprobs(each) for each in logprobs]
        return chat_response

    def _message(self) -> ChatMessage:
        blocks: list[ContentBlock] = []
        if self._thoughts:
            blocks.append(ThinkingBlock(content=self._thoughts))
        if self._text or not self._calls:
            blocks.append(TextBlock(text=self._text))
        blocks += self._calls
        extra = {"invalid_tool_calls": list(self._invalid)} if self._invalid else {}
        if self._calls:  # where streamed objects, for one, are looked for
            extra["tool_calls"] = [
                call_dict(call.tool_name, call.tool_kwargs, call.tool_call_id or "")
                for call in self._calls
            ]
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)


def _with_run(report: dict[str, Any], run_id: str | None) -> dict[str, Any]:
    """Return a report with the run that captures the call: here, or where the model runs."""
    return {**report, "run_id": run_id or report.get("run_id")}


def _logprobs(entry: dict[str, Any]) -> list[LogProb]:
    """Return the token that was taken and the others that were asked for."""
    # Parts of a character are written alike, so that the bytes alone name no token.
    taken = entry["bytes"], entry["logprob"]
    others = [one for one in entry["top_logprobs"] if (one["bytes"], one["logprob"]) != taken]
    return [
        LogProb(token=each["token"], logprob=each["logprob"], bytes=each["bytes"])
        for each in (entry, *others)
    ]

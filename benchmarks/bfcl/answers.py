"""What models answer: asked through `LAGChatModel`, several at once, and written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables.config import ContextThreadPoolExecutor
from pydantic import BaseModel, ConfigDict

from benchmarks.bfcl.cases import Case
from lag_integrations.chat.parts import Part
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.response import ModelResponse
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.reasoning import (
    ChannelReader,
    ReasoningReader,
    Splitter,
    TextDelta,
)
from lag_integrations.engine.tools import CallEnded, MarkReader
from lag_integrations.evaluation.records import RecordFile
from lag_integrations.langchain import LAGChatModel
from lag_integrations.traces.message_conversion import as_message

_WRITTEN = "written"
"""Where an answer has what the model wrote."""


class Call(BaseModel):
    """A call that was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    args: dict[str, Any]


class Record(BaseModel):
    """What a model answered to a question.

    Attributes:
        model: Name of the model.
        id: The question.
        text: What the model wrote, before it was read.
        calls: The calls that `LAGChatModel` gave.
        errors: Why further calls could not be read.
        marked: The calls that are read by the marks of the model's own tool format alone.
        finish_reason: Why the answer ended.
        prompt_tokens: Tokens of the prompt.
        written_tokens: Tokens of the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    id: str
    text: str
    calls: tuple[Call, ...]
    errors: tuple[str, ...]
    marked: tuple[Call, ...]
    finish_reason: str
    prompt_tokens: int
    written_tokens: int


class Records(RecordFile[tuple[str, str], Record]):
    """The records in a file, by model and question.

    Args:
        path: The file.

    Raises:
        EvaluationError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, Record, lambda record: (record.model, record.id))


def answer_all(
    engine: Engine, name: str, cases: Sequence[Case], *, batch: int, max_tokens: int
) -> Iterator[list[Record]]:
    """Ask a model, several questions at once; those with prompts of like length go together."""
    model = _Writing(engine, temperature=0, max_tokens=max_tokens)

    def length(case: Case) -> int:
        return engine.count_tokens([as_message(message) for message in case.messages], case.tools)

    ordered = sorted(cases, key=length)
    for begin in range(0, len(ordered), batch):
        some = ordered[begin : begin + batch]
        answers = _together(model, some)
        yield [
            _record(engine, name, case, answer) for case, answer in zip(some, answers, strict=True)
        ]


class _Writing(LAGChatModel):
    """Gives with each answer what the model wrote, before it was read."""

    def __init__(self, engine: Engine, **settings: Any) -> None:
        super().__init__(engine, **settings)

    def _result(self, parts: list[Part], reply: Reply) -> ChatResult:
        result = super()._result(parts, reply)
        assert isinstance(reply, ModelResponse)
        (generation,) = result.generations
        assert isinstance(generation, ChatGeneration)
        generation.message.response_metadata[_WRITTEN] = reply.generation.text
        return result


def _together(model: LAGChatModel, cases: Sequence[Case]) -> list[AIMessage]:
    """Call the model like ``model.batch``, but with tools of each question's own."""

    def one(case: Case) -> AIMessage:
        return model.bind_tools(case.tools).invoke(list(case.messages))

    with ContextThreadPoolExecutor(max_workers=len(cases)) as executor:
        return list(executor.map(one, cases))


def _record(engine: Engine, name: str, case: Case, answer: AIMessage) -> Record:
    usage, text = answer.usage_metadata, answer.response_metadata[_WRITTEN]
    assert usage is not None
    return Record(
        model=name,
        id=case.id,
        text=text,
        calls=tuple(Call(name=call["name"], args=call["args"]) for call in answer.tool_calls),
        errors=tuple(str(call["error"]) for call in answer.invalid_tool_calls),
        marked=tuple(_marked(engine, text, case.tools)),
        finish_reason=answer.response_metadata["finish_reason"],
        prompt_tokens=usage["input_tokens"],
        written_tokens=usage["output_tokens"],
    )


def _marked(engine: Engine, text: str, tools: Sequence[dict[str, Any]]) -> Iterator[Call]:
    """Return the calls that begin with the marks of the model's tool format."""
    format = engine.chat_template
    splitter: Splitter = (
        ChannelReader() if format.tools.says else ReasoningReader(format.opens_reasoning)
    )
    parts = splitter.feed(text) + splitter.finish()
    reader = MarkReader(format.tools, tools)
    events = reader.feed("".join(part.text for part in parts if isinstance(part, TextDelta)))
    for event in events + reader.finish():
        if isinstance(event, CallEnded):
            assert isinstance(event.call.args, dict)
            yield Call(name=event.call.name, args=event.call.args)

"""An answer as a chat model owes it: recalled for, held to its form, and taken apart.

Framework-free: LangChain and LlamaIndex classes only translate what goes in and comes out.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from lag_integrations.chat.context import RetrievalSettings, RetrievedContext, retrieve_context
from lag_integrations.engine.chat_template import Placement, with_system_text
from lag_integrations.engine.engine import Engine, EngineStream
from lag_integrations.engine.generation.grammar import (
    json_answer,
    json_or_calls,
    rest_of_call,
    text_or_calls,
    text_without,
)
from lag_integrations.engine.generation.reasoning import (
    CLOSE,
    ChannelReader,
    ReasoningDelta,
    ReasoningReader,
    Splitter,
    TextDelta,
)
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.tools import (
    AnswerReader,
    CallEnded,
    CallFailed,
    MarkReader,
    Text,
    ToolChoice,
    ToolFormat,
    must_call,
    select,
)
from lag_integrations.engine.tools.schema import Schema
from lag_integrations.errors import PromptError
from lag_integrations.memory.safe_recall import miss_report
from lag_integrations.traces.trace import Message

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

ANY_JSON: Schema = {"type": "object"}
"""Some JSON object."""
_MOST_CALLS = 8
"""Calls of its own accord in one answer."""


@dataclass(frozen=True)
class OutputFormat:
    """What an answer must look like.

    Attributes:
        tools: Tools, in OpenAI's form.
        tool_choice: Which of them may or must be called; see `tools.choice`.
        schema: JSON schema of the answer.
    """

    tools: Sequence[dict[str, Any]] = ()
    tool_choice: ToolChoice = None
    schema: Schema | None = None


@dataclass(frozen=True)
class ChatRequest:
    """One call of a chat model.

    Attributes:
        chat: The conversation.
        form: What the answer must look like.
        recall: How logs are recalled.
        placement: Where their segments stand.
        attention_temperature: How the model attends to them; see `Engine.request`.
        words: The question's words, where the last user message holds more, as documents.
        max_tokens: Most tokens to generate.
        stop: Texts that end the answer.
        top_logprobs: See `Engine.request`, as for ``timeout``.
        sampling: Fields of `Sampling`.
        cache_salt: Whose prompt it is, within the memory; see `Engine.request`.
        share_system: Whether system message and tools may be reused for everybody.
    """

    chat: Sequence[Message]
    form: OutputFormat = field(default_factory=OutputFormat)
    recall: RetrievalSettings = field(default_factory=RetrievalSettings)
    placement: Placement | None = None
    attention_temperature: float | None = None
    question_text: str | None = None
    max_tokens: int = 512
    stop: Sequence[str] = ()
    top_logprobs: int | None = None
    timeout: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    cache_salt: str = ""
    share_system: bool = False


Part = ReasoningDelta | Text | CallEnded | CallFailed
"""A part of an answer."""


class ModelResponse(Iterator[Part]):
    """The answer to a question, part by part.

    Args:
        engine: The model.
        memory: Where logs are recalled from.
        question: The question.
        owner: Without a memory, the one that captures the run: what is read is reused for it alone.

    Attributes:
        injection: What was recalled.
        request: What the engine is asked.
        abandoned: Nobody waits for it any more.

    Raises:
        PromptError: There is no message to answer.
        LAGError: As `Engine.request`, `injection.inject` and `tools.choice.select` say.
    """

    def __init__(
        self,
        engine: Engine,
        memory: LogMemory | None,
        question: ChatRequest,
        owner: LogMemory | None = None,
    ) -> None:
        if not question.chat:
            raise PromptError("There is no message to answer; give at least one.")
        shape = OutputPlan(engine, question)
        self.injection: RetrievedContext = retrieve_context(
            engine,
            memory,
            shape.chat(question.chat),
            question.recall,
            question_text=question.question_text,
            max_tokens=question.max_tokens,
            tools=shape.tools,
        )
        self.request: Request = engine.request(
            self.injection.chat,
            self.injection.segments,
            placement=question.placement,
            attention_temperature=question.attention_temperature,
            question=question.question_text,
            tools=shape.tools,
            answer_prefix=shape.prefix,
            max_new_tokens=question.max_tokens,
            stop=question.stop,
            grammar=shape.grammar,
            top_logprobs=question.top_logprobs,
            timeout=question.timeout,
            cache_salt=_salt(engine, memory or owner, question.cache_salt),
            share_system=question.share_system,
            **question.sampling,
        )
        self.generation = Generation()
        self.abandoned = False
        self._given = False
        self._engine = engine
        self._stream: EngineStream | None = None
        self._parts = self._read(shape)

    def __next__(self) -> Part:
        return next(self._parts)

    def set_result(self, generation: Generation) -> None:
        """Take what was generated for `request` elsewhere (in a batch), instead of generating."""
        self.generation, self._given = generation, True

    def close(self) -> None:
        """Stop the model."""
        if self._stream is not None:
            self._stream.close()

    @property
    def read_tokens(self) -> int:
        """Tokens before the answer, whoever computed them."""
        return self.generation.prompt_tokens + self.generation.injected_tokens

    @property
    def cached_tokens(self) -> int:
        """Those of them that nobody had to compute: read lately, or of segments that were there."""
        injected = self.generation.injected_tokens - self.injection.encoded_tokens
        return self.generation.reused_tokens + injected

    def report(self) -> dict[str, Any]:
        """Return what was used: logs and scores (best first), their form, tokens, seconds.

        Where nothing was recalled, the most relevant log below the floor is the nearest miss.
        """
        generation, injection = self.generation, self.injection
        logs = [*injection.logs, *injection.read]
        return {
            "log_ids": [log.id for log in logs],
            "scores": [log.score for log in logs],
            "relevance": [log.relevance for log in logs],
            "nearest_miss": miss_report(injection.nearest_miss),
            "form": "kv" if injection.logs else "text" if injection.read else None,
            "read_as_text": [log.id for log in injection.read],
            "injected_tokens": generation.injected_tokens,
            "reused_tokens": generation.reused_tokens,
            "timings": {
                **injection.timings,
                "injection": generation.injection_time,
                "time_to_first_token": sum(injection.timings.values())
                + generation.time_to_first_token,
            },
        }

    def _pieces(self) -> Iterator[str]:
        if self._given:
            return iter([self.generation.text])
        self._stream = self._engine.start(self.request)
        self.generation = self._stream.generation
        return self._stream

    def _read(self, shape: OutputPlan) -> Iterator[Part]:
        reasoning, reader = shape.split(), shape.reader()
        if reader is not None:
            reader.feed(shape.before)

        def parts(read: list[ReasoningDelta | TextDelta]) -> Iterator[Part]:
            for part in read:
                if isinstance(part, ReasoningDelta):
                    yield part
                elif reader is None:
                    yield Text(part.text)
                else:
                    yield from reader.feed(part.text)

        for piece in self._pieces():
            yield from parts(reasoning.feed(piece))
        yield from parts(reasoning.finish())
        if reader is not None:
            yield from reader.feed(shape.after)
            cut_off = self.generation.finish_reason == "length"
            yield from reader.finish(cut_off=cut_off)


async def aiter_events(answer: ModelResponse) -> AsyncIterator[Part]:
    """Each step on a thread, so that the event loop goes on; when cancelled, no further one."""
    done = object()
    while (part := await asyncio.to_thread(next, answer, done)) is not done:
        yield cast(Part, part)


def _salt(engine: Engine, memory: LogMemory | None, salt: str) -> str:
    """Return under which salt a prompt is read: that of the memory, and within it the caller's.

    Without a memory it begins with a colon, so that no caller's can be a memory's.
    """
    own = "" if memory is None else memory.cache_salt(engine)
    return f"{own}:{salt}" if salt else own


class OutputPlan:
    """A form, worked out for a model: what it is told, what it is held to, how it is read."""

    def __init__(self, engine: Engine, question: ChatRequest) -> None:
        form, template = question.form, engine.chat_template
        format, special_tokens = template.tools, template.special_tokens
        held = engine.can_constrain
        self._format: ToolFormat | None = None
        self._schema = form.schema
        self.tools = select(form.tools, form.tool_choice)
        self.prefix = self.before = self.after = ""
        self.grammar: str | None = None
        forced = bool(self.tools) and must_call(form.tool_choice)
        # An answer that is continued has no thought before it.
        begins = question.chat[-1].role != "assistant"
        opens = engine.chat_template.opens_reasoning and begins
        says = format.says if begins else ""
        self.thinks = opens and not forced and form.schema is None
        # What is held to a form, or goes on with an answer, is not all of one.
        self._is_free = begins and not forced and form.schema is None
        if self.tools:
            self._format = format
            calls = format.forms(self.tools, most=1 if forced else _MOST_CALLS)
            if forced:
                # The model gets the beginning for granted, and writes the rest alone.
                self.prefix = self.before = calls.opening
                self.after = calls.closing
                self.grammar = rest_of_call(calls, special_tokens)
                self._schema = None
            elif form.schema is not None:
                self.grammar = json_or_calls(calls, form.schema, special_tokens, says)
            elif held and format.is_marked:
                self.grammar = text_or_calls(calls, special_tokens, thinking=self.thinks)
        elif form.schema is not None:
            self.prefix, self.grammar = says, json_answer(form.schema)
        elif form.tools and held:
            self.prefix, self.grammar = says, text_without(format.starts(), special_tokens)
        self._channels = bool(says) and not self.prefix
        if opens and not self.thinks:  # no room for thoughts in what it is held to
            self.prefix = f"{CLOSE}\n\n{self.prefix}"

    def chat(self, chat: Sequence[Message]) -> Sequence[Message]:
        """The conversation, with what the model must know of the form."""
        if self._schema is None or self._schema == ANY_JSON:
            return chat
        schema = json.dumps(self._schema, ensure_ascii=False)
        return with_system_text(
            chat, f"Answer with JSON of this JSON schema, and nothing else:\n{schema}"
        )

    def split(self) -> Splitter:
        """Splits what the model thinks from what it says."""
        return ChannelReader() if self._channels else ReasoningReader(self.thinks)

    def reader(self) -> AnswerReader | MarkReader | None:
        """Reads the calls in an answer; None where there can be none."""
        if self._format is None:
            return None
        return (AnswerReader if self._is_free else MarkReader)(self._format, self.tools)

"""The response to one call: recalled for, held to its format, and taken apart.

Framework-free: LangChain and LlamaIndex classes only translate what goes in and comes out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any
from urllib.parse import quote

from lag_integrations.chat.context import RetrievedContext, retrieve_context
from lag_integrations.chat.openai_form import logprob_dict
from lag_integrations.chat.output_plan import OutputPlan
from lag_integrations.chat.parts import Part
from lag_integrations.chat.request import ChatRequest
from lag_integrations.engine.answer import EngineStream
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.reasoning import ReasoningDelta, TextDelta
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.log_texts import around_logs, with_texts
from lag_integrations.engine.tools import CallEnded, CallFailed, Text
from lag_integrations.errors import PromptError, SettingsError
from lag_integrations.kv.prefix_cache import SEPARATOR
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import miss_report


def respond(
    engine: Engine,
    memory: LogMemory | None,
    request: ChatRequest,
    owner: LogMemory | None = None,
) -> ModelResponse:
    """Render the prompt, recall for it, and prepare the response; nothing is generated yet.

    Args:
        engine: The model.
        memory: Where logs are recalled from.
        request: What is asked.
        owner: The memory that captures the run: what is read is reused for it alone.

    Raises:
        PromptError: There is no message to answer.
        LAGError: As `RequestBuilder.build`, `retrieve_context` and `tools.choice.select` say.
    """
    begun = time.monotonic()
    if not request.messages:
        raise PromptError("There is no message to answer; give at least one.")
    if request.capture is not None:
        raise SettingsError(
            "capture= is for a model at base_url=…; a model here is captured by callbacks."
        )
    plan = OutputPlan(engine, request.output, begins=request.messages[-1].role != "assistant")
    messages = plan.messages(request.messages)
    prompt = engine.render(messages, plan.tools)
    around = sum(len(engine.tokens_of(text)) for text in (plan.prefix, *around_logs(True)))
    # A quarter of the window is kept for the answer at most: it may well be shorter.
    kept = min(request.max_tokens, engine.window // 4)
    budget = engine.window - len(prompt.token_ids) - around - kept
    context = retrieve_context(
        memory, engine, messages, request.retrieval, budget, request.question
    )
    if context.texts:  # which are part of what the template renders
        messages = with_texts(messages, context.texts, request.question)
        prompt = engine.render(messages, plan.tools)
    built = engine.requests.build(
        prompt,
        context.segments,
        engine.log_settings,
        placement=request.placement,
        attention_temperature=request.attention_temperature,
        question=request.question,
        answer_prefix=plan.prefix,
        max_new_tokens=request.max_tokens,
        stop=request.stop,
        grammar=plan.grammar,
        top_logprobs=request.top_logprobs,
        timeout=_left(request.timeout, begun),
        cache_salt=_salt(engine, (memory, owner), request.cache_salt),
        share_system=request.share_system,
        **request.sampling,
    )
    return ModelResponse(engine, built, plan, context)


def _left(timeout: float | None, begun: float) -> float | None:
    """Return what is left of a timeout that counts from the call."""
    return None if timeout is None else max(0.0, timeout - (time.monotonic() - begun))


def _salt(engine: Engine, memories: Iterable[LogMemory | None], salt: str) -> str:
    """Return under which salt a prompt is read: that of its memories, and within it the caller's.

    The prompt holds what one memory recalls and another one's run: either forgets it.

    Without a memory it begins with a colon, so that no caller's can be a memory's.
    """
    salts = dict.fromkeys(memory.cache_salt(engine) for memory in memories if memory is not None)
    own = SEPARATOR.join(salts)
    return f"{own}:{quote(salt, safe='', errors='surrogatepass')}" if salt else own


class ModelResponse(Iterator[Part], AsyncIterator[Part]):
    """The response to a request, part by part, for ``for`` or ``async for``.

    The model begins when the first part is asked for.

    Args:
        engine: The model.
        request: What the engine is asked.
        plan: How the answer is read.
        context: What was recalled.

    Attributes:
        request: As above.
        plan: As above.
        context: As above.
        generation: What was generated so far.
    """

    def __init__(
        self, engine: Engine, request: Request, plan: OutputPlan, context: RetrievedContext
    ) -> None:
        self.request = request
        self.context = context
        self.generation = Generation()
        self._engine = engine
        self.plan = plan
        self._stream: EngineStream | None = None
        self._parts: Iterator[Part] | None = None
        self._async_parts: AsyncIterator[Part] | None = None

    def __next__(self) -> Part:
        if self._parts is None:
            self._parts = self._read()
        return next(self._parts)

    async def __anext__(self) -> Part:
        if self._async_parts is None:
            self._async_parts = self._aread()
        return await anext(self._async_parts)

    def close(self) -> None:
        """Stop the model."""
        if self._stream is not None:
            self._stream.close()

    async def aclose(self) -> None:
        """Stop the model."""
        self.close()

    @property
    def read_tokens(self) -> int:
        """Tokens before the answer, whoever computed them."""
        return self.generation.prompt_tokens + self.generation.injected_tokens

    @property
    def cached_tokens(self) -> int:
        """Those of them that nobody had to compute: read lately, or of segments that were there."""
        injected = self.generation.injected_tokens - self.context.encoded_tokens
        return self.generation.reused_tokens + injected

    @property
    def finish_reason(self) -> str:
        """Why it ended."""
        return self.generation.finish_reason

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens read and written; injected and reused ones count as cached."""
        read, written = self.read_tokens, len(self.generation.token_ids)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "cache_creation_tokens": self.context.encoded_tokens,
            },
        }

    @property
    def logprobs(self) -> list[dict[str, Any]] | None:
        """Log probabilities of each token."""
        if self.request.top_logprobs is None:
            return None
        return [logprob_dict(self._engine, entry) for entry in self.generation.logprobs]

    def report(self) -> dict[str, Any]:
        """Return what was used: logs and scores (best first), their form, tokens, seconds.

        Where nothing was recalled, the most relevant log below the floor is the nearest miss.
        """
        generation, context = self.generation, self.context
        as_kv, as_text = context.as_kv, context.as_text
        logs = [*as_kv, *as_text]
        return {
            "log_ids": [log.id for log in logs],
            "scores": [log.score for log in logs],
            "relevance": [log.relevance for log in logs],
            "steps": [log.step for log in logs],
            "without_answer": [log.id for log in logs if log.without_answer],
            "nearest_miss": miss_report(context.nearest_miss),
            "form": "kv" if as_kv else "text" if as_text else None,
            "read_as_text": [log.id for log in as_text],
            "injected_tokens": generation.injected_tokens,
            "accepted_tokens": generation.accepted_tokens,
            "reused_tokens": generation.reused_tokens,
            "timings": {
                **context.timings,
                "injection": generation.injection_time,
                "time_to_first_token": sum(context.timings.values())
                + generation.time_to_first_token,
            },
        }

    def _start(self) -> EngineStream:
        self._stream = self._engine.start(self.request)
        self.generation = self._stream.generation
        return self._stream

    def _read(self) -> Iterator[Part]:
        reader = ResponseReader(self.plan)
        try:
            for piece in self._start():
                yield from reader.feed(piece)
            yield from reader.finish(self.generation)
        finally:
            self.close()

    async def _aread(self) -> AsyncIterator[Part]:
        reader = ResponseReader(self.plan)
        try:
            async for piece in self._start():
                for part in reader.feed(piece):
                    yield part
            for part in reader.finish(self.generation):
                yield part
        finally:
            self.close()


class ResponseReader:
    """Takes an answer apart while it is written.

    Args:
        plan: How it is read.
    """

    def __init__(self, plan: OutputPlan) -> None:
        self._plan = plan
        self._splitter, self._calls = plan.splitter(), plan.reader()
        self._called = False
        if self._calls is not None:
            self._calls.feed(plan.before)

    def feed(self, piece: str) -> Iterator[Part]:
        """Yield the parts that a piece completes."""
        yield from self._parts(self._splitter.feed(piece))

    def finish(self, generation: Generation) -> Iterator[Part]:
        """Yield what is left at the end."""
        yield from self._parts(self._splitter.finish())
        if self._calls is not None:
            yield from self._allowed(self._calls.feed(self._plan.after))
            cut_off = generation.finish_reason == "length"
            yield from self._allowed(self._calls.finish(cut_off=cut_off))

    def _parts(self, read: list[ReasoningDelta | TextDelta]) -> Iterator[Part]:
        for part in read:
            if isinstance(part, ReasoningDelta):
                yield part
            elif self._calls is None:
                yield Text(part.text)
            else:
                yield from self._allowed(self._calls.feed(part.text))

    def _allowed(self, parts: Iterable[Text | CallEnded | CallFailed]) -> Iterator[Part]:
        """Yield parts; of the calls, the first alone where there may be no more."""
        for part in parts:
            if isinstance(part, CallEnded):
                if self._called and not self._plan.parallel_tool_calls:
                    continue
                self._called = True
            yield part

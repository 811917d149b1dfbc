"""The response to one call: recalled for, held to its format, and taken apart.

Framework-free: LangChain and LlamaIndex classes only translate what goes in and comes out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from lag_integrations.chat.context import RetrievedContext, retrieve_context
from lag_integrations.chat.output_plan import OutputPlan
from lag_integrations.chat.request import ChatRequest
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.reasoning import ReasoningDelta, TextDelta
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.generator import EngineStream
from lag_integrations.engine.log_texts import around_logs, with_texts
from lag_integrations.engine.tools import CallEnded, CallFailed, Text
from lag_integrations.errors import PromptError
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import miss_report

Part = ReasoningDelta | Text | CallEnded | CallFailed
"""A part of a response."""


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
        owner: Without a memory, the one that captures the run: what is read is reused for it alone.

    Raises:
        PromptError: There is no message to answer.
        LAGError: As `RequestBuilder.build`, `retrieve_context` and `tools.choice.select` say.
    """
    if not request.messages:
        raise PromptError("There is no message to answer; give at least one.")
    plan = OutputPlan(engine, request.output, begins=request.messages[-1].role != "assistant")
    messages = plan.messages(request.messages)
    prompt = engine.render(messages, plan.tools)
    around = sum(len(engine.tokens_of(text)) for text in (plan.prefix, *around_logs(True)))
    # A quarter of the window is kept for the answer at most: it may well be shorter.
    kept = min(request.max_tokens, engine.window // 4)
    budget = engine.window - len(prompt.token_ids) - around - kept
    context = retrieve_context(memory, engine, messages, request.retrieval, budget)
    if context.texts:  # which are part of what the template renders
        messages = with_texts(messages, context.texts, request.question_text)
        prompt = engine.render(messages, plan.tools)
    built = engine.requests.build(
        prompt,
        context.segments,
        engine.log_settings,
        placement=request.placement,
        attention_temperature=request.attention_temperature,
        question=request.question_text,
        answer_prefix=plan.prefix,
        max_new_tokens=request.max_tokens,
        stop=request.stop,
        grammar=plan.grammar,
        top_logprobs=request.top_logprobs,
        timeout=request.timeout,
        cache_salt=_salt(engine, memory or owner, request.cache_salt),
        share_system=request.share_system,
        **request.sampling,
    )
    return ModelResponse(engine, built, plan, context)


def _salt(engine: Engine, memory: LogMemory | None, salt: str) -> str:
    """Return under which salt a prompt is read: that of the memory, and within it the caller's.

    Without a memory it begins with a colon, so that no caller's can be a memory's.
    """
    own = "" if memory is None else memory.cache_salt(engine)
    return f"{own}:{salt}" if salt else own


class ModelResponse(Iterator[Part]):
    """The response to a request, part by part.

    Args:
        engine: The model.
        request: What the engine is asked.
        plan: How the answer is read.
        context: What was recalled.

    Attributes:
        request: As above.
        context: As above.
        generation: What was generated so far.
        abandoned: Nobody waits for it any more.
    """

    def __init__(
        self, engine: Engine, request: Request, plan: OutputPlan, context: RetrievedContext
    ) -> None:
        self.request = request
        self.context = context
        self.generation = Generation()
        self.abandoned = False
        self._is_set = False
        self._engine = engine
        self._stream: EngineStream | None = None
        self._parts = self._read(plan)

    def __next__(self) -> Part:
        return next(self._parts)

    def set_result(self, generation: Generation) -> None:
        """Take what was generated for the request elsewhere (in a batch), instead of generating."""
        self.generation, self._is_set = generation, True

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
        injected = self.generation.injected_tokens - self.context.encoded_tokens
        return self.generation.reused_tokens + injected

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
            "nearest_miss": miss_report(context.nearest_miss),
            "form": "kv" if as_kv else "text" if as_text else None,
            "read_as_text": [log.id for log in as_text],
            "injected_tokens": generation.injected_tokens,
            "reused_tokens": generation.reused_tokens,
            "timings": {
                **context.timings,
                "injection": generation.injection_time,
                "time_to_first_token": sum(context.timings.values())
                + generation.time_to_first_token,
            },
        }

    def _pieces(self) -> Iterator[str]:
        if self._is_set:
            return iter([self.generation.text])
        self._stream = self._engine.start(self.request)
        self.generation = self._stream.generation
        return self._stream

    def _read(self, plan: OutputPlan) -> Iterator[Part]:
        splitter, reader = plan.splitter(), plan.reader()
        if reader is not None:
            reader.feed(plan.before)

        def parts(read: list[ReasoningDelta | TextDelta]) -> Iterator[Part]:
            for part in read:
                if isinstance(part, ReasoningDelta):
                    yield part
                elif reader is None:
                    yield Text(part.text)
                else:
                    yield from reader.feed(part.text)

        for piece in self._pieces():
            yield from parts(splitter.feed(piece))
        yield from parts(splitter.finish())
        if reader is not None:
            yield from reader.feed(plan.after)
            cut_off = self.generation.finish_reason == "length"
            yield from reader.finish(cut_off=cut_off)


async def aiter_events(response: ModelResponse) -> AsyncIterator[Part]:
    """Yield parts, each computed on a thread; when cancelled, no further one is."""
    done = object()
    while (part := await asyncio.to_thread(next, response, done)) is not done:
        yield cast(Part, part)

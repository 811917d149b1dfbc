"""LLMs and choosers that say what a test tells them to, and what these tests share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.agent.workflow import AgentInput, ToolCallResult
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.workflow import Context, StopEvent, step
from llama_index_instrumentation import get_dispatcher
from pydantic import Field

from lag_integrations import Trace
from lag_integrations.llama_index.message_tag import is_carrier, tag_of
from tests.conftest import qa

VAULT = qa("What is the code of the vault in Lima?", "The code of the vault in Lima is 7741.")
FERRY = qa("What does the Ostrava ferry carry?", "The Ostrava ferry carries bees.")
Prompts = list[list[ChatMessage]]


def look(city: str) -> str:
    """Look at the weather."""
    return f"Rain in {city}"


def user(text: str) -> ChatMessage:
    """A question."""
    return ChatMessage(role="user", content=text)


def answer(text: str) -> ChatMessage:
    """An answer."""
    return ChatMessage(role="assistant", content=text)


def call(name: str, text: str = "", **args: Any) -> ChatMessage:
    """An answer that calls a tool."""
    block = ToolCallBlock(tool_name=name, tool_kwargs=args, tool_call_id=f"call-{name}")
    return ChatMessage(role="assistant", blocks=[*([TextBlock(text=text)] if text else []), block])


class FakeLLM(FunctionCallingLLM):
    """Gives its answers in turn, the last one for ever; texts are streamed word by word.

    An answer may be a text, a message, an exception, or a function of the messages.
    """

    answers: list[Any] = Field(default_factory=lambda: ["done"])
    raw: Any = None
    delay: float = 0.0
    seen: list[Any] = Field(default_factory=list)

    def __init__(self, *answers: Any, **kwargs: Any) -> None:
        super().__init__(answers=list(answers) or ["done"], **kwargs)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, is_function_calling_model=True)

    def _next(self, messages: Any) -> ChatMessage:
        self.seen.append(list(messages))
        answer = self.answers[min(len(self.seen), len(self.answers)) - 1]
        if callable(answer):
            answer = answer(messages)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, str):
            return ChatMessage(role="assistant", content=answer)
        return answer.model_copy(deep=True)

    def _pieces(self, messages: Any) -> Any:
        message = self._next(messages)
        words = (message.content or "").split(" ")
        for place, word in enumerate(words):
            last = place == len(words) - 1
            delta = word if last else f"{word} "
            if last:
                so_far = message
            else:
                so_far = ChatMessage(role="assistant", content=" ".join(words[: place + 1]))
            yield ChatResponse(message=so_far, delta=delta, raw=self.raw if last else None)

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        time.sleep(self.delay)
        return ChatResponse(message=self._next(messages), raw=self.raw)

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        await asyncio.sleep(self.delay)
        return ChatResponse(message=self._next(messages), raw=self.raw)

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        def pieces() -> Any:
            for piece in self._pieces(messages):
                time.sleep(self.delay)
                yield piece

        return pieces()

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        async def pieces() -> Any:
            for piece in self._pieces(messages):
                await asyncio.sleep(self.delay)
                yield piece

        return pieces()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        time.sleep(self.delay)
        return CompletionResponse(text=self._next([prompt]).content or "", raw=self.raw)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        await asyncio.sleep(self.delay)
        return CompletionResponse(text=self._next([prompt]).content or "", raw=self.raw)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def pieces() -> Any:
            for piece in self._pieces([prompt]):
                yield _completion(piece)

        return pieces()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        async def pieces() -> Any:
            for piece in self._pieces([prompt]):
                await asyncio.sleep(self.delay)
                yield _completion(piece)

        return pieces()

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(
                ChatMessage(role="user", content=user_msg)
                if isinstance(user_msg, str)
                else user_msg
            )
        return {"messages": messages}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        return [
            ToolSelection(
                tool_id=block.tool_call_id or "",
                tool_name=block.tool_name,
                tool_kwargs=block.tool_kwargs,
            )
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]


class FakeCompletionLLM(CustomLLM):
    """One whose chat is a completion, and whose async methods are the others: calls nest."""

    answers: list[str] = Field(default_factory=lambda: ["done"])
    count: int = 0

    def __init__(self, *answers: str, **kwargs: Any) -> None:
        super().__init__(answers=list(answers) or ["done"], **kwargs)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def _next(self) -> str:
        self.count += 1
        return self.answers[min(self.count, len(self.answers)) - 1]

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self._next())

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def pieces() -> Any:
            text = ""
            for word in self._next().split(" "):
                delta = word if not text else f" {word}"
                text += delta
                yield CompletionResponse(text=text, delta=delta)

        return pieces()


def _completion(piece: ChatResponse) -> CompletionResponse:
    return CompletionResponse(text=piece.message.content or "", delta=piece.delta, raw=piece.raw)


def fake_llm(*answers: Any) -> tuple[FakeLLM, Prompts]:
    """An LLM, and the prompts that it is given."""
    llm = FakeLLM(*answers)
    return llm, llm.seen


class Prices:
    """A tool that tells prices, whose calls end in the reverse order.

    Args:
        prices: By what costs them, in the order of the calls.
    """

    def __init__(self, **prices: str) -> None:
        self._prices = prices
        self._noted = {of: asyncio.Event() for of in prices}

    async def price(self, of: str) -> str:
        """Tell what a drink costs."""
        names = list(self._prices)
        for later in names[names.index(of) + 1 :]:
            await asyncio.wait_for(self._noted[later].wait(), 20)
        return self._prices[of]

    def noted_by(self, kind: type[Any]) -> type[Any]:
        """A kind of agent, for which the tool's calls wait to note a result."""
        noted = self._noted

        class Noting(kind):
            @step
            async def aggregate_tool_results(
                self, ctx: Context, ev: ToolCallResult
            ) -> AgentInput | StopEvent | None:
                result = await super().aggregate_tool_results(ctx, ev)
                noted[ev.tool_kwargs["of"]].set()
                return result

        return Noting


def index(*texts: str) -> VectorStoreIndex:
    """An index of texts, all of which are alike to its embedder."""
    documents = [Document(text=text) for text in texts or ("Oslo is rainy.",)]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(8))


def transcript(trace: Trace) -> list[tuple[str, str]]:
    """Who said what; a call is its tool's name."""
    return [
        (step.role, step.text or ",".join(call.name for call in step.tool_calls))
        for step in trace.messages
    ]


def in_threads(count: int, function: Any) -> None:
    """Run a function in threads at once; each is given its number."""
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def our_handlers() -> tuple[list[Any], list[Any]]:
    """Our span handlers and event handlers at LlamaIndex's root dispatcher."""
    root = get_dispatcher()
    spans, events = (
        [each for each in handlers if each.class_name().startswith("LAG")]
        for handlers in (root.span_handlers, root.event_handlers)
    )
    return spans, events


class FirstSelector(BaseSelector):
    """FirstSelector the first of the choices; as many as it is told to."""

    def __init__(self, most: int) -> None:
        self._most = most

    def _select(self, choices, query):
        chosen = range(min(self._most, len(choices)))
        return SelectorResult(selections=[SingleSelection(index=n, reason="") for n in chosen])

    async def _aselect(self, choices, query):
        return self._select(choices, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


class FixedQuestions(BaseQuestionGenerator):
    """FixedQuestions each tool the questions that are made of the query."""

    def __init__(self, questions: Callable[[str], list[str]]) -> None:
        self._questions = questions

    def generate(self, tools, query):
        return [
            SubQuestion(sub_question=question, tool_name=tool.name)
            for tool in tools
            for question in self._questions(query.query_str)
        ]

    async def agenerate(self, tools, query):
        return self.generate(tools, query)

    def _get_prompts(self):
        return {}

    def _update_prompts(self, prompts):
        pass


def named(messages: list[ChatMessage]) -> list[str] | None:
    """The logs that a prompt names; None if it names none, not even no logs."""
    tag = tag_of(messages)
    return None if tag is None else list(tag["log_ids"])


def texts(messages: list[ChatMessage]) -> str:
    """All that a model reads of a prompt."""
    return "\n".join(m.content or "" for m in messages if not is_carrier(m))

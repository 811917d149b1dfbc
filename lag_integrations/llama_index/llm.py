"""A LlamaIndex LLM on a local Hugging Face model, given recalled KV."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.tools.types import BaseTool

from lag_integrations.answering import Answer, stepwise
from lag_integrations.asking import ask
from lag_integrations.engine import Engine
from lag_integrations.errors import ToolChoiceError
from lag_integrations.llama_index.translate import Reply, as_chat
from lag_integrations.scope import current_memory
from lag_integrations.settings import ModelSettings, given_engine
from lag_integrations.shared import SharedEngine


class LAGLLM(FunctionCallingLLM, ModelSettings):
    """A LlamaIndex LLM whose prompts can be given the KV of recalled logs.

    ``response.raw`` says what was used (``["lag"]``, as `LAGChatModel`), why the answer ended, and
    how many tokens were read and written; nothing in it is a tensor. Tools are shown and calls are
    read as the model's chat template wants it; ``tool_required`` and ``tool_choice`` are enforced
    token by token (extra ``constrained``), and so is structured prediction, which calls a tool.

    Any setting may be given to a call: ``llm.chat(messages, temperature=0, k=1)``, also
    ``kv_log_ids=[…]`` (exactly these logs; ``[]`` for none).

    Example:
        .. code-block:: python

            llm = LAGLLM(model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
            llm.complete("What is the capital of France?")

    Args:
        model: Hub id or local folder, a loaded ``PreTrainedModel`` (with ``tokenizer``), or an
            `Engine` to share, ``LAGChatModel.engine`` too. A name is loaded at the first call.
        tokenizer: The tokenizer of a loaded model.
        **kwargs: The attributes below, and those of every LlamaIndex LLM.

    Raises:
        ValueError: An attribute is unknown or not valid.
    """

    kv_reserve: int = 512
    """Tokens of the window that are kept free for recalled segments, at most a quarter of it."""

    _shared: SharedEngine = PrivateAttr()

    def __init__(self, model: Any, *, tokenizer: Any = None, **kwargs: Any) -> None:
        engine = given_engine(model, tokenizer, kwargs)
        super().__init__(model=engine.name if engine else str(model), **kwargs)
        self._shared = SharedEngine(self.model, self.loading, engine)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serialises it."""
        return "LAGLLM"

    @property
    def engine(self) -> Engine:
        """The wrapped model, loaded at first use."""
        engine = self._shared.get()
        if self.memory is not None:
            self.memory.attach(engine)
        return engine

    def close(self) -> None:
        """Release a model that was loaded by name; a given engine is its owner's to close."""
        self._shared.close()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LAGLLM:
        return self.model_copy()  # of the model and its memory there is one

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts by; the window is less what is kept for segments."""
        window = self.engine.window
        return LLMMetadata(
            context_window=window - min(self.kv_reserve, window // 4),
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """What observers are told of the model: no secrets, no tensors."""
        return {"class_name": self.class_name(), **self.metadata.model_dump(mode="json")}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation, piece by piece. Whoever stops reading stops the model."""
        return self._stream(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, on a thread."""
        return await self._achat(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, each step on a thread."""
        return self._astream(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text: the user's turn of a conversation, whether it is formatted or not."""
        return _completion(self._chat(_turn(prompt), kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece."""
        stream = self._stream(_turn(prompt), kwargs)
        return (_completion(response) for response in stream)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, on a thread."""
        return _completion(await self._achat(_turn(prompt), kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, each step on a thread."""
        stream = self._astream(_turn(prompt), kwargs)

        async def completions() -> CompletionResponseAsyncGen:
            async for response in stream:
                yield _completion(response)

        return completions()

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = list(chat_history or [])
        if user_msg is not None:
            messages += _turn(user_msg) if isinstance(user_msg, str) else [user_msg]
        choice = kwargs.pop("tool_choice", None)
        if tool_required and choice in (None, "auto", "none"):
            choice = "required"
        schemas = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        return {"messages": messages, "tools": schemas, "tool_choice": choice, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        if not allow_parallel_tool_calls:
            calls = [b for b in response.message.blocks if isinstance(b, ToolCallBlock)]
            response.message.blocks = [
                block for block in response.message.blocks if block not in calls[1:]
            ]
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in a response.

        Raises:
            ToolChoiceError: There is none, and that is an error.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if not calls and error_on_no_tool_call:
            raise ToolChoiceError(
                "The model called no tool; pass tool_required=True to make it call one."
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=call.tool_kwargs if isinstance(call.tool_kwargs, dict) else {},
            )
            for call in calls
        ]

    def _chat(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatResponse:
        answer, reply = self._answer(messages, given)
        for part in answer:
            reply.add(part)
        return reply.end()

    async def _achat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponse:
        answer, reply = await asyncio.to_thread(self._answer, messages, given)
        async for part in stepwise(answer):
            reply.add(part)
        return reply.end()

    def _stream(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatResponseGen:
        answer, reply = self._answer(messages, given)
        try:
            for part in answer:
                yield reply.more(part)
            yield reply.end()
        finally:
            answer.close()

    async def _astream(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        answer, reply = await asyncio.to_thread(self._answer, messages, given)
        async for part in stepwise(answer):
            yield reply.more(part)
        yield reply.end()

    def _answer(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> tuple[Answer, Reply]:
        """Recall, load the segments, and get ready to generate."""
        engine, memory = self.engine, self.memory
        rest = dict(given)
        if rest.get("kv_log_ids") is not None:
            # The ids may be those of another memory: of the engine or memory that recalled them.
            memory = current_memory.get() or memory
        tools = rest.pop("tools", None) or ()
        chat = as_chat(self._with_system_prompt(messages))
        answer = Answer(engine, memory, ask(self, chat, rest, tools=tools))
        return answer, Reply(answer, engine, self.model)

    def _with_system_prompt(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Once: `predict` and programs have put it there already."""
        prompt = self.system_prompt
        first = messages[0] if messages else None
        if not prompt or (
            first is not None and first.role == MessageRole.SYSTEM and first.content == prompt
        ):
            return list(messages)
        return self._extend_messages(list(messages))


def _turn(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


def _completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        logprobs=response.logprobs,
        additional_kwargs=response.additional_kwargs,
    )

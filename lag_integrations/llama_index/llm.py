"""A LlamaIndex LLM over a local Hugging Face model, with recalled KV injected."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model
from pydantic import ConfigDict
from typing_extensions import Unpack

from lag_integrations.chat.remote import RemoteModel
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.settings import ModelSettings, given_engine
from lag_integrations.chat.shared_engine import SharedEngine, engine_of, shared_model
from lag_integrations.errors import ToolChoiceError
from lag_integrations.llama_index.capture.handlers import Need, instrumentation
from lag_integrations.llama_index.llm_call import LLMCall
from lag_integrations.llama_index.message_tag import is_carrier, tag_of
from lag_integrations.llama_index.messages import ReplyBuilder
from lag_integrations.memory.safe_recall import attach_safely

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lag_integrations.engine.engine import Engine
    from lag_integrations.llama_index.settings import LAGLLMSettings


class LAGLLM(FunctionCallingLLM, ModelSettings):
    """A LlamaIndex LLM whose prompts can hold the KV of recalled logs.

    The logs are those that a `LAGMemory` or `LAGQueryEngine` recalled for the task at hand, else
    those that the LLM's own memory has for the last user message.

    ``response.raw`` reports why the answer ended, how many tokens were read and written, and which
    logs were used (``["lag"]``, as for `LAGChatModel`). Its ``run_id`` names the run that captures
    the call, for `KVLogMemory.feedback`. Nothing in it is a tensor.

    Tools are shown and calls are read as the model's chat template defines them. ``tool_required``
    and ``tool_choice`` are enforced token by token (extra ``constrained``), and so is structured
    prediction, which calls a tool.

    A call may override settings, but those of loading: ``llm.chat(messages, temperature=0, k=1)``.
    It also takes ``kv_log_ids=[…]`` (exactly these logs; ``[]`` for none) and
    ``logs_as_text=True``, to compare.

    Example:
        .. code-block:: python

            llm = LAGLLM(model="HuggingFaceTB/SmolLM2-1.7B-Instruct")
            llm.complete("What is the capital of France?")

    Args:
        model: Hub id or local folder, a loaded ``PreTrainedModel`` (with ``tokenizer``), or an
            `Engine` to share, ``LAGChatModel.engine`` too. A name is loaded at the first call.
        tokenizer: The tokenizer of a loaded model.
        **settings: The fields below, those of `ModelSettings`, and those of every LlamaIndex LLM.

    Raises:
        ValueError: A setting is unknown or not valid.
        StoreError: The filter is malformed.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    kv_reserve: int = Field(default=512, ge=0)
    """Tokens of the window that are kept free for recalled segments, at most a quarter of it."""

    _shared: SharedEngine | RemoteModel = PrivateAttr()
    _need: Need | None = PrivateAttr(default=None)

    def __init__(
        self,
        model: str | Path | Engine | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **settings: Unpack[LAGLLMSettings],
    ) -> None:
        engine = given_engine(model, tokenizer, settings)
        super().__init__(model=engine.name if engine else str(model), **settings)
        self._shared = shared_model(self, engine)
        if self.memory is not None:  # it is asked what was retrieved before it is called
            self._need = instrumentation.need()

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex serialises it."""
        return "LAGLLM"

    @property
    def engine(self) -> Engine:
        """Return the wrapped model, loading it at first use.

        Raises:
            SettingsError: It runs elsewhere.
        """
        engine = engine_of(self._shared)
        if self.memory is not None:
            attach_safely(self.memory, engine)
        return engine

    def close(self) -> None:
        """Release a model that was loaded by name; a given engine is its owner's to close."""
        self._shared.close()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LAGLLM:
        return self.model_copy()  # of the model and its memory there is one

    @property
    def metadata(self) -> LLMMetadata:
        """Return what LlamaIndex plans prompts by. The window is less `kv_reserve`."""
        window = self._shared.window
        return LLMMetadata(
            context_window=window - min(self.kv_reserve, window // 4),
            num_output=self.max_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """Return what observers are told of the model: no secrets, no tensors."""
        names = {"class_name": self.class_name(), "model": self.model}
        settings: dict[str, Any] = {"temperature": self.temperature}
        if isinstance(self._shared, SharedEngine):  # else a server would have to be asked
            settings |= self.metadata.model_dump(mode="json")
        return {**names, **settings}

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        return self._chat(messages, kwargs)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Stream the answer to a conversation. Whoever stops reading stops the model."""
        return self._stream(messages, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation; recall on a thread, and wait for tokens on the event loop."""
        return await self._achat(messages, kwargs)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """Stream the answer to a conversation; recall on a thread, wait on the event loop."""
        return self._astream(messages, kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text, which is the user's turn of a conversation, whether formatted or not."""
        return _completion(self._chat(_turn(prompt), kwargs))

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """Stream the answer to a text."""
        stream = self._stream(_turn(prompt), kwargs)
        return (_completion(response) for response in stream)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """Answer a text; recall on a thread, and wait for tokens on the event loop."""
        return _completion(await self._achat(_turn(prompt), kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Stream the answer to a text; recall on a thread, wait on the event loop."""
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
        called = {"tool_choice": choice, "parallel_tool_calls": allow_parallel_tool_calls}
        return {"messages": messages, "tools": schemas, **called, **kwargs}

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        program = self._program(output_cls, prompt)
        return program.stream_call(llm_kwargs=llm_kwargs, **prompt_args)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        program = self._program(output_cls, prompt)
        return await program.astream_call(llm_kwargs=llm_kwargs, **prompt_args)

    def _program(
        self, output_cls: type[Model], prompt: BasePromptTemplate
    ) -> FunctionCallingProgram[Model]:
        """Return a program whose streams have to call the tool, too."""
        return FunctionCallingProgram.from_defaults(
            output_cls, prompt=prompt, llm=self, tool_choice="required"
        )

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls in a response.

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

    def _chat(self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]) -> ChatResponse:
        call = self._call(messages, settings)
        reply, builder = self._start(call)
        for part in reply:
            builder.add(part)
        return call.end(builder)

    async def _achat(
        self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]
    ) -> ChatResponse:
        call = self._call(messages, settings)
        reply, builder = await asyncio.to_thread(self._start, call)
        async for part in reply:
            builder.add(part)
        return call.end(builder)

    def _stream(
        self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]
    ) -> ChatResponseGen:
        call = self._call(messages, settings)

        def responses() -> ChatResponseGen:
            reply, builder = self._start(call)
            try:
                for part in reply:
                    yield builder.more(part)
                yield call.end(builder)
            finally:
                reply.close()

        return responses()

    def _astream(
        self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        call = self._call(messages, settings)

        async def responses() -> ChatResponseAsyncGen:
            reply, builder = await asyncio.to_thread(self._start, call)
            try:
                async for part in reply:
                    yield builder.more(part)
                yield call.end(builder)
            finally:
                await reply.aclose()

        return responses()

    def _call(self, messages: Sequence[ChatMessage], settings: Mapping[str, Any]) -> LLMCall:
        conversation = [message for message in messages if not is_carrier(message)]
        first = conversation[0] if conversation else None
        # `predict` and programs have put the system prompt there already.
        if first is None or (first.role, first.content) != (MessageRole.SYSTEM, self.system_prompt):
            conversation = self._extend_messages(conversation)
        return LLMCall.of(self, conversation, tag_of(messages), settings)

    def _start(self, call: LLMCall) -> tuple[Reply, ReplyBuilder]:
        shared = self._shared
        return call.start(shared if isinstance(shared, RemoteModel) else self.engine)


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

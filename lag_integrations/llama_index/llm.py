"""A LlamaIndex LLM on a local Hugging Face model, given recalled KV."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools.types import BaseTool
from llama_index.core.types import Model

from lag_integrations.chat.current import InjectedLogs, current_logs, current_memory
from lag_integrations.chat.request import build_request
from lag_integrations.chat.response import ModelResponse, aiter_events, respond
from lag_integrations.chat.settings import ModelSettings, given_engine
from lag_integrations.chat.shared_engine import SharedEngine
from lag_integrations.engine.engine import Engine
from lag_integrations.errors import ToolChoiceError
from lag_integrations.llama_index.capture.instrument import (
    captured_by,
    current_owner,
    current_run,
    is_choosing,
    retrieved,
)
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.llama_index.message_tag import is_carrier, tag_of
from lag_integrations.llama_index.messages import Reply, as_chat
from lag_integrations.llama_index.task_recall import said_by_user
from lag_integrations.memory.base import open_memories
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import Recalled, filter_for
from lag_integrations.traces.sources import Source

logger = logging.getLogger(__name__)


class LAGLLM(FunctionCallingLLM, ModelSettings):
    """A LlamaIndex LLM whose prompts can be given the KV of recalled logs.

    ``response.raw`` says what was used (``["lag"]``, as `LAGChatModel`, and ``run_id`` of the run
    that captures it, for `KVLogMemory.feedback`), why the answer ended, and how many tokens were
    read and written; nothing in it is a tensor. Tools are shown and calls are
    read as the model's chat template wants it; ``tool_required`` and ``tool_choice`` are enforced
    token by token (extra ``constrained``), and so is structured prediction, which calls a tool.

    Any setting may be given to a call: ``llm.chat(messages, temperature=0, k=1)``, also
    ``kv_log_ids=[…]`` (exactly these logs; ``[]`` for none) and ``logs_as_text=True``, to compare.
    Else the logs are those that a `LAGMemory` or `LAGQueryEngine` recalled for the task at hand,
    else what the LLM's own memory has for the last user message.

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
        StoreError: The filter is malformed.
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
        names = {"class_name": self.class_name(), "model": self.model}
        settings = {"temperature": self.temperature, **self.metadata.model_dump(mode="json")}
        return {**names, **settings}

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
        """One whose streams have to call, too."""
        return FunctionCallingProgram.from_defaults(
            output_cls, prompt=prompt, llm=self, tool_choice="required"
        )

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
        call = self._call(messages, given)
        answer, reply = self._answer(call)
        for part in answer:
            reply.add(part)
        return call.end(reply)

    async def _achat(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponse:
        call = self._call(messages, given)
        answer, reply = await asyncio.to_thread(self._answer, call)
        async for part in aiter_events(answer):
            reply.add(part)
        return call.end(reply)

    def _stream(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> ChatResponseGen:
        call = self._call(messages, given)

        def responses() -> ChatResponseGen:
            answer, reply = self._answer(call)
            try:
                for part in answer:
                    yield reply.more(part)
                yield call.end(reply)
            finally:
                answer.close()

        return responses()

    def _astream(
        self, messages: Sequence[ChatMessage], given: Mapping[str, Any]
    ) -> ChatResponseAsyncGen:
        call = self._call(messages, given)

        async def responses() -> ChatResponseAsyncGen:
            answer, reply = await asyncio.to_thread(self._answer, call)
            async for part in aiter_events(answer):
                yield reply.more(part)
            yield call.end(reply)

        return responses()

    def _call(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> _Call:
        """What is asked and which logs are given: now, since a stream may be read elsewhere."""
        settings, memory, recalled = dict(given), self.memory, None
        tag, scope = tag_of(messages), current_logs.get()
        log_ids: list[str] | None = None
        if tag is not None:
            scope, memory = None, open_memories.find(str(tag["memory"]))
            log_ids = list(tag["log_ids"])
        elif scope is not None:
            memory, log_ids = scope.memory, []
            # A log answers the question; it does not say which tool or document to choose.
            recalled = None if is_choosing() or settings.get("k") == 0 else scope.recalled
            settings.setdefault("logs_as_text", scope.as_text)
            settings.setdefault("question", scope.question)
        # Read now: a stream may be read where nothing of this is known.
        run_id, owner = current_run(), captured_by()
        shown = [*(() if scope is None else scope.shown), *retrieved()]
        if settings.get("kv_log_ids") is not None:
            shown = []  # exactly these
            recalled, log_ids = None, list(settings["kv_log_ids"])
            # The ids may be those of another memory: of the engine or memory that recalled them.
            memory = current_memory.get() or self.memory or memory
        elif log_ids and settings.get("k") == 0:
            log_ids = []
        if log_ids is not None:
            settings["kv_log_ids"] = log_ids
        if callable(where := settings.get("where") or self.where):
            settings["where"] = filter_for(where, current_tags())
        settings["owner"] = current_owner()
        if log_ids and memory is None:
            logger.warning("The memory of the logs that a call is given is not open: none used.")
        conversation = [message for message in messages if not is_carrier(message)]
        conversation = self._with_system_prompt(conversation)
        return _Call(conversation, settings, memory, scope, recalled, shown, run_id, owner)

    def _answer(self, call: _Call) -> tuple[ModelResponse, Reply]:
        """Recall, load the segments, and get ready to generate."""
        engine, settings = self.engine, dict(call.settings)
        if call.memory is not None and call.memory is not self.memory:
            call.memory.attach(engine)
        if call.recalled is not None:
            settings["kv_log_ids"] = [log.id for log in call.recalled.use(call.shown).logs]
        tools = settings.pop("tools", None) or ()
        one_call = settings.pop("parallel_tool_calls", None) is False
        question = build_request(
            self,
            as_chat(call.messages),
            settings,
            framework_messages=call.messages,
            tools=tools,
            shown=call.shown,
            said=said_by_user(call.messages),
        )
        answer = respond(engine, call.memory, question, call.owner)
        return answer, Reply(answer, engine, self.model, one_call=one_call)

    def _with_system_prompt(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """Once: `predict` and programs have put it there already."""
        prompt = self.system_prompt
        first = messages[0] if messages else None
        if not prompt or (
            first is not None and first.role == MessageRole.SYSTEM and first.content == prompt
        ):
            return list(messages)
        return self._extend_messages(list(messages))


@dataclass(frozen=True)
class _Call:
    """A call, with the logs that it is given.

    Attributes:
        messages: The conversation.
        settings: Those of the call.
        memory: Where logs come from.
        scope: Who recalled them for more calls than this one.
        recalled: What they recalled, if this call is given of it.
        shown: The documents that are known to be shown.
        run_id: The captured run that the call belongs to.
        owner: The memory that captures it.
    """

    messages: Sequence[ChatMessage]
    settings: Mapping[str, Any]
    memory: LogMemory | None
    scope: InjectedLogs | None
    recalled: Recalled | None
    shown: Sequence[Source]
    run_id: str | None
    owner: LogMemory | None

    def end(self, reply: Reply) -> ChatResponse:
        """The whole reply; whoever recalled is told what became of it."""
        response = reply.end(self.run_id)
        if self.scope is not None:
            self.scope.reports.append(dict(response.raw or {}))
        return response


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

"""A LangChain chat model over a local Hugging Face model, with recalled KV injected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseRunManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field
from typing_extensions import Unpack

from lag_integrations.chat.current import current_memory
from lag_integrations.chat.parts import Part
from lag_integrations.chat.remote import RemoteModel, refuse_foreign_logs
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.request import ChatRequest, build_request
from lag_integrations.chat.settings import SAMPLING, ModelSettings, given_engine
from lag_integrations.chat.shared_engine import SharedEngine, engine_of, shared_model
from lag_integrations.engine.generation.grammar import can_constrain
from lag_integrations.langchain.capture.configs import config_of, run_metadata
from lag_integrations.langchain.capture.current import (
    captured_by,
    current_owner,
    retrieved,
)
from lag_integrations.langchain.messages import (
    as_ai_message,
    as_chat,
    as_chunk,
    json_schema_of,
    response_metadata,
    usage_metadata,
)
from lag_integrations.langchain.model_profile import model_profile
from lag_integrations.langchain.tool_calling import ToolCallingChatModel
from lag_integrations.memory.safe_recall import attach_safely, filter_for
from lag_integrations.traces.owner import NOBODY
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lag_integrations.engine.engine import Engine
    from lag_integrations.langchain.settings import LAGChatModelSettings


class LAGChatModel(ToolCallingChatModel, ModelSettings):
    """A chat model that answers with the help of what agents did before.

    For the last user message it recalls logs from its memory and injects their KV segments into the
    model's cache, so that their text is not read again. A log is skipped if its task and last
    response stand in the conversation, or if documents retrieved in the same captured root run
    outdate it.

    ``response_metadata["lag"]`` reports what was used:

    - ``log_ids``, ``scores`` and ``relevance``, best first; ``nearest_miss`` if there were none.
    - ``steps``: which step of each log was given; None where it was the run. ``without_answer``:
      of which only what led to the answer was, since they are about other cases.
    - ``form``: ``kv`` or ``text``; ``read_as_text``: the logs given as text, see
      `missing_segments`.
    - ``injected_tokens``, and ``reused_tokens`` of the prompt that were read lately.
    - ``timings`` in seconds: ``recall``, ``load``, ``injection``, ``time_to_first_token``.

    In ``usage_metadata``, injected and reused tokens count as ``cache_read``, or as
    ``cache_creation`` if they had to be encoded first.

    Tools are shown and calls are read as the model's chat template defines them. ``tool_choice``,
    `with_structured_output` and ``response_format`` constrain the answer token by token (extra
    ``constrained``), so that it is always valid. Reasoning between ``<think>`` and ``</think>``
    goes to ``additional_kwargs["reasoning_content"]``.

    A call may override most settings: ``model.invoke(question, k=1, temperature=0)``. It also takes
    ``kv_log_ids=[…]`` (exactly these logs; ``[]`` for none).

    Example:
        .. code-block:: python

            memory = KVLogMemory("./memory")
            model = LAGChatModel(model="HuggingFaceTB/SmolLM2-1.7B-Instruct", memory=memory)
            config = {"callbacks": [memory.callback_handler()]}
            model.invoke("What is the capital of France?", config)

    Args:
        model: Hub id or local folder, a loaded ``PreTrainedModel`` (with ``tokenizer``), or an
            `Engine` to share. A name is loaded at the first call.
        tokenizer: The tokenizer of a loaded model.
        **settings: The fields below and those of every LangChain chat model.

    Raises:
        ValueError: A setting is unknown or not valid.
        StoreError: The filter is malformed.
    """

    streaming: bool = False
    """Whether ``invoke`` streams to callbacks, too."""
    max_batch_size: int = Field(default=8, ge=1)
    """Most inputs of ``batch`` that are answered at once, unless ``max_concurrency`` says so."""
    validate_model_on_init: bool = False
    """Whether to load the model at construction, so that a wrong name fails early."""
    shared: SharedEngine | RemoteModel | None = Field(default=None, exclude=True, repr=False)
    """The loaded model, for the copies that LangChain makes of this one from its fields."""

    def __init__(
        self,
        model: str | Path | Engine | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **settings: Unpack[LAGChatModelSettings],
    ) -> None:
        engine = given_engine(model, tokenizer, settings)
        recalls = settings.get("memory") is not None or settings.get("base_url") is not None
        if recalls and settings.setdefault("cache", False):
            # It sees the prompt, neither the memory nor whose it is.
            raise ValueError(
                "LangChain's cache would serve answers from before the memory changed; leave "
                "cache= out, or use a model without memory= and base_url=."
            )
        fields: dict[str, Any] = {"model": engine.name if engine else str(model), **settings}
        super().__init__(**fields)
        self.shared = shared_model(self, engine, self.shared)
        if self.profile is None:
            self.profile = model_profile(held=self.base_url is not None or can_constrain())
        if self.validate_model_on_init:
            _ = self.shared.window

    @property
    def engine(self) -> Engine:
        """Return the wrapped model, loading it at first use.

        Raises:
            SettingsError: It runs elsewhere.
        """
        engine = engine_of(self.shared)
        if self.memory is not None:
            attach_safely(self.memory, engine)
        return engine

    def close(self) -> None:
        """Release a model that was loaded by name; a given engine is its owner's to close."""
        if self.shared is not None:
            self.shared.close()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> LAGChatModel:
        return self.model_copy()  # of the model and its memory there is one

    @property
    def _llm_type(self) -> str:
        return "lag-huggingface"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "stop": self.stop,
            "logprobs": self.logprobs,
            "top_logprobs": self.top_logprobs,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "model_kwargs": {n: v for n, v in self.model_kwargs.items() if "token" not in n},
            "base_url": self.base_url,
            "fingerprint": self.shared.fingerprint if self.shared else None,
            **{name: getattr(self, name) for name in SAMPLING},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "lag"
        params["ls_model_name"] = kwargs.get("model", self.model)
        return params

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Return False: LangChain's registry takes no third-party classes."""
        return False

    def get_token_ids(self, text: str) -> list[int]:
        """Return the token ids of a text, by the model's own tokenizer."""
        if isinstance(self.shared, RemoteModel):
            return self.shared.token_ids(text)
        return list(self.engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Return the number of tokens of the rendered conversation."""
        model = self.shared if isinstance(self.shared, RemoteModel) else self.engine
        return model.count_tokens(
            as_chat(messages), [convert_to_openai_tool(tool) for tool in tools or ()]
        )

    # LangChain passes no config to `_generate` and the like: the owner must be known before.

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answer a prompt."""
        return super().invoke(input, config, **self._with_run(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answer a prompt."""
        return await super().ainvoke(input, config, **self._with_run(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Stream an answer."""
        return super().stream(input, config, **self._with_run(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Stream an answer."""
        return super().astream(input, config, **self._with_run(config, kwargs))

    def batch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs, up to `max_batch_size` of them at once."""
        configs = self._at_once(inputs, config)
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs as `batch` does."""
        configs = self._at_once(inputs, config)
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    def _at_once(
        self, inputs: list[Any], config: RunnableConfig | list[RunnableConfig] | None
    ) -> list[RunnableConfig]:
        return [
            {**each, "max_concurrency": each.get("max_concurrency") or self.max_batch_size}
            for each in get_config_list(config, len(inputs))
        ]

    def _with_run(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.memory is None and self.base_url is None:
            return kwargs
        config = config_of(config)
        if callable(where := kwargs.get("where") or self.where):
            kwargs = {**kwargs, "where": filter_for(where, config)}
        if self.base_url is not None:
            told = run_metadata(config.get("metadata"), None)
            kwargs = {**kwargs, "run_metadata": {**told, **kwargs.pop("run_metadata", {})}}
        owner = current_owner(config)
        return kwargs if owner == NOBODY else {**kwargs, "owner": owner}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self._prepare(messages, stop, kwargs, run_manager)
        return self._result(list(reply), reply)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = await asyncio.to_thread(self._prepare, messages, stop, kwargs, run_manager)
        return self._result([part async for part in reply], reply)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._prepare(messages, stop, kwargs, run_manager)
        try:
            for part in reply:
                yield ChatGenerationChunk(message=as_chunk(part))
            yield self._last_chunk(reply)
        finally:
            reply.close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        reply = await asyncio.to_thread(self._prepare, messages, stop, kwargs, run_manager)
        try:
            async for part in reply:
                yield ChatGenerationChunk(message=as_chunk(part))
            yield self._last_chunk(reply)
        finally:
            await reply.aclose()

    def _prepare(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        run: BaseRunManager | None,
    ) -> Reply:
        """Recall logs, load their segments, and return a reply that is ready to generate."""
        model = self.shared if isinstance(self.shared, RemoteModel) else self.engine
        memory, sources = self.memory, retrieved()
        if kwargs.get("kv_log_ids") is not None:
            # Exactly these, maybe of another memory: of the middleware that recalled them.
            memory, sources = current_memory.get() or memory, []
        if "owner" not in kwargs:  # by `generate` and the like
            kwargs = {**kwargs, "owner": current_owner(config_of(run=run), run)}
        if callable(where := kwargs.get("where") or self.where):
            kwargs = {**kwargs, "where": filter_for(where, config_of(run=run))}
        request = self._build_request(messages, stop, dict(kwargs), sources)
        if isinstance(model, RemoteModel):
            if kwargs.get("kv_log_ids"):
                refuse_foreign_logs(current_memory.get())
            return model.respond(request)
        from lag_integrations.chat.response import respond  # torch, which a remote model needs not

        return respond(model, memory, request, current_memory.get() or captured_by(run))

    def _build_request(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        sources: Sequence[Source],
    ) -> ChatRequest:
        tools = [convert_to_openai_tool(tool) for tool in kwargs.pop("tools", None) or ()]
        schema = json_schema_of(kwargs.pop("response_format", None))
        if stop is not None:
            kwargs["stop"] = stop
        return build_request(
            self,
            as_chat(messages),
            kwargs,
            framework_messages=messages,
            tools=tools,
            schema=schema,
            shown=sources,
        )

    def _result(self, parts: list[Part], reply: Reply) -> ChatResult:
        message = as_ai_message(
            parts,
            response_metadata=response_metadata(reply, self.model),
            usage_metadata=usage_metadata(reply),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, reply: Reply) -> ChatGenerationChunk:
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                response_metadata=response_metadata(reply, self.model),
                usage_metadata=usage_metadata(reply),
            )
        )

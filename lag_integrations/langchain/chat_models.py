"""A LangChain chat model on a local Hugging Face model, given recalled KV."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseRunManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ContextThreadPoolExecutor,
    get_config_list,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, SecretStr

from lag_integrations.chat.current import current_memory
from lag_integrations.chat.request import ChatRequest, build_request
from lag_integrations.chat.response import ModelResponse, aiter_events, respond
from lag_integrations.chat.settings import SAMPLING, ModelSettings, given_engine
from lag_integrations.chat.shared_engine import SharedEngine
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.constraint import can_constrain
from lag_integrations.engine.tools import ToolChoice, select
from lag_integrations.langchain.batching import Table, left, seated, take_seat
from lag_integrations.langchain.capture.configs import config_of
from lag_integrations.langchain.capture.handler import captured_by, owner_of, retrieved
from lag_integrations.langchain.messages import (
    as_ai_message,
    as_chat,
    as_chunk,
    json_schema_of,
    response_metadata,
    usage_metadata,
)
from lag_integrations.langchain.structured_output import Method, structured_output
from lag_integrations.memory.safe_recall import filter_for
from lag_integrations.traces.owner import NOBODY
from lag_integrations.traces.sources import Source


class LAGChatModel(BaseChatModel, ModelSettings):
    """A chat model that answers with the help of what agents did before.

    For the last user message it recalls logs from its memory, and gives the wrapped model their KV
    segments instead of their text: nothing is read again. A log whose task and last response stand
    in the conversation already is not recalled, nor is one that a retriever's findings outdate: in
    the same root run, where it is captured (see `is_outdated`).

    What was used stands in ``response_metadata["lag"]``: ``log_ids``, ``scores`` and ``relevance``
    (best first), ``form`` (``kv`` or ``text``), which of them were ``read_as_text`` (see
    `missing_segments`), ``nearest_miss`` (where nothing was recalled), ``injected_tokens``,
    ``reused_tokens`` (of the prompt, read lately), and ``timings`` in seconds (``recall``,
    ``load``, ``injection``, ``time_to_first_token``). In ``usage_metadata``, injected and reused
    tokens count as ``cache_read``, or as ``cache_creation`` if they had to be encoded first.

    Tools are shown and calls are read as the model's chat template wants it. ``tool_choice``,
    `with_structured_output` and ``response_format`` hold the answer to its form token by token
    (extra ``constrained``), so that it is valid whatever the model would rather say. Reasoning
    between ``<think>`` and ``</think>`` goes to ``additional_kwargs["reasoning_content"]``.

    A call may override most settings: ``model.invoke(question, k=1, temperature=0)``, also
    ``kv_log_ids=[…]`` (exactly these logs; ``[]`` for none) and ``logprobs=True``.

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
        **kwargs: The attributes below.

    Raises:
        ValueError: An attribute is unknown or not valid.
        StoreError: The filter is malformed.
    """

    max_batch_size: int = 8
    """Most inputs of ``batch`` that are answered together, with one forward pass a token."""
    streaming: bool = False
    """Whether ``invoke`` streams to callbacks, too."""
    validate_model_on_init: bool = False
    """Whether to load the model at once, so that a wrong name shows early."""
    max_retries: int | None = Field(default=None, exclude=True, repr=False)
    """Accepted as other chat models do; a local model needs none."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """As `max_retries`."""

    shared: SharedEngine | None = Field(default=None, exclude=True, repr=False)
    """The loaded model; for copies of this one, which LangChain makes from its attributes."""

    def __init__(self, model: Any, *, tokenizer: Any = None, **kwargs: Any) -> None:
        engine = given_engine(model, tokenizer, kwargs)
        if kwargs.get("memory") is not None and kwargs.setdefault("cache", False):
            # It sees the prompt, not the memory.
            raise ValueError(
                "LangChain's cache would serve answers from before the memory changed; leave "
                "cache= out, or use a model without memory=."
            )
        super().__init__(**{"model": engine.name if engine else str(model), **kwargs})
        if (
            engine is not None
            or self.shared is None
            or not self.shared.fits(self.model, self.loading)
        ):
            self.shared = SharedEngine(self.model, self.loading, engine)
        if self.profile is None:
            self.profile = _profile()
        if self.validate_model_on_init:
            _ = self.engine

    @property
    def engine(self) -> Engine:
        """The wrapped model, loaded at first use."""
        assert self.shared is not None
        engine = self.shared.get()
        if self.memory is not None:
            self.memory.attach(engine)
        return engine

    def close(self) -> None:
        """Release a model that was loaded by name; a given engine is its owner's to close."""
        assert self.shared is not None
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
            "chat_template": self.chat_template,
            "chat_template_kwargs": self.chat_template_kwargs,
            "model_kwargs": {n: v for n, v in self.model_kwargs.items() if "token" not in n},
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
        """Not by LangChain's own registry, which third-party classes cannot enter."""
        return False

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of a text, by the model's own tokenizer."""
        return list(self.engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the rendered conversation, by the model's own template and tokenizer."""
        return self.engine.count_tokens(
            as_chat(messages), [convert_to_openai_tool(tool) for tool in tools or ()]
        )

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: ToolChoice = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call tools.

        Args:
            tools: Functions, tools, pydantic classes, TypedDicts or schemas.
            tool_choice: ``auto``; ``any``, ``required`` or True for some tool; a tool's name (or
                OpenAI's dict form) for that one; ``none``. All but ``auto`` are enforced while the
                model writes (extra ``constrained``).
            **kwargs: Bound to each call.

        Raises:
            ToolChoiceError: The choice names no known tool.
        """
        schemas = [convert_to_openai_tool(tool) for tool in tools]
        select(schemas, tool_choice)
        if tool_choice is not None:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=schemas, **kwargs)

    def with_structured_output(
        self,
        schema: Any = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Let the model answer with objects, valid ones whatever its size.

        Args:
            schema: A pydantic class (its objects are returned), a TypedDict, a JSON schema or an
                OpenAI tool (dicts are returned).
            method: ``json_schema`` (the answer is the object), ``function_calling`` (a call of a
                tool with these arguments) or ``json_mode`` (as ``json_schema``; without a schema,
                any JSON object).
            include_raw: Give ``{"raw", "parsed", "parsing_error"}``, and raise nothing.
            strict: Accepted as other chat models do; answers always fit the schema.
            **kwargs: Bound to each call.

        Raises:
            ValueError: The method is unknown, or has no schema.
        """
        return structured_output(self, schema, method, include_raw=include_raw, **kwargs)

    # LangChain hands a model's own methods no config: whose call it is must be known before.

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answer."""
        return super().invoke(input, config, **self._with_run(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """Answer."""
        return await super().ainvoke(input, config, **self._with_run(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """Answer, piece by piece."""
        return super().stream(input, config, **self._with_run(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """Answer, piece by piece."""
        return super().astream(input, config, **self._with_run(config, kwargs))

    def _with_run(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.memory is None:
            return kwargs
        whole = config_of(config)
        if callable(where := kwargs.get("where") or self.where):
            kwargs = {**kwargs, "where": filter_for(where, whole)}
        owner = owner_of(whole)
        return kwargs if owner == NOBODY else {**kwargs, "owner": owner}

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        table = take_seat(self)
        answer, engine = self._answer(messages, stop, kwargs, run_manager, table)
        if table is not None:
            table.hand_in(engine, answer).result()
        return self._result(list(answer), answer, engine)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        table = take_seat(self)
        answer, engine = await asyncio.to_thread(
            self._answer, messages, stop, kwargs, run_manager, table
        )
        if table is not None:
            try:
                future = await asyncio.to_thread(table.hand_in, engine, answer)
                await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                answer.abandoned = True
                raise
        parts = [part async for part in aiter_events(answer)]
        return self._result(parts, answer, engine)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        answer, engine = self._answer(messages, stop, kwargs, run_manager)
        try:
            for part in answer:
                yield ChatGenerationChunk(message=as_chunk(part))
            yield self._last_chunk(answer, engine)
        finally:
            answer.close()

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        answer, engine = await asyncio.to_thread(self._answer, messages, stop, kwargs, run_manager)
        async for part in aiter_events(answer):
            yield ChatGenerationChunk(message=as_chunk(part))
        yield self._last_chunk(answer, engine)

    def batch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs, up to `max_batch_size` of them with one forward pass a token.

        Args:
            inputs: The inputs.
            config: One config for all, or one each; ``max_concurrency`` limits the batch, too.
            return_exceptions: Return exceptions in place of answers, instead of raising the first.
            **kwargs: Settings of the calls.
        """
        answers: list[Any] = []
        for some, configs in self._batches(inputs, config):
            table = Table(len(some))

            def one(given: tuple[Any, RunnableConfig], table: Table = table) -> Any:
                with seated(table, self) as seat:
                    try:
                        return self.invoke(given[0], given[1], **kwargs)
                    except Exception as error:
                        return error
                    finally:
                        left(seat)

            with ContextThreadPoolExecutor(max_workers=len(some)) as executor:
                answers += executor.map(one, list(zip(some, configs, strict=True)))
            _raise_first(answers, return_exceptions)
        return answers

    async def abatch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """As `batch`."""
        answers: list[Any] = []
        for some, configs in self._batches(inputs, config):
            table = Table(len(some))

            async def one(given: Any, its: RunnableConfig, table: Table = table) -> Any:
                with seated(table, self) as seat:
                    try:
                        return await self.ainvoke(given, its, **kwargs)
                    except Exception as error:
                        return error
                    finally:
                        await asyncio.to_thread(left, seat)

            answers += await asyncio.gather(*map(one, some, configs))
            _raise_first(answers, return_exceptions)
        return answers

    def _batches(
        self, inputs: list[Any], config: RunnableConfig | list[RunnableConfig] | None
    ) -> Iterator[tuple[list[Any], list[RunnableConfig]]]:
        configs = get_config_list(config, len(inputs))
        limits = [each.get("max_concurrency") or self.max_batch_size for each in configs]
        size = max(1, min([self.max_batch_size, *limits]))
        for begin in range(0, len(inputs), size):
            yield inputs[begin : begin + size], configs[begin : begin + size]

    def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        kwargs: dict[str, Any],
        run: BaseRunManager | None,
        table: Table | None = None,
    ) -> tuple[ModelResponse, Engine]:
        """Recall, load the segments, and get ready to generate."""
        try:
            engine = self.engine
            memory, shown = self.memory, retrieved()
            if kwargs.get("kv_log_ids") is not None:
                # Exactly these, maybe of another memory: of the middleware that recalled them.
                memory, shown = current_memory.get() or memory, []
            if "owner" not in kwargs:  # by `generate` and the like
                kwargs = {**kwargs, "owner": owner_of(config_of(run=run), run)}
            if callable(where := kwargs.get("where") or self.where):
                kwargs = {**kwargs, "where": filter_for(where, config_of(run=run))}
            question = self._question(messages, stop, dict(kwargs), shown)
            owner = current_memory.get() or captured_by(run)
            return respond(engine, memory, question, owner), engine
        except BaseException:
            if table is not None:
                table.leave()
            raise

    def _question(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        given: dict[str, Any],
        shown: Sequence[Source],
    ) -> ChatRequest:
        tools = [convert_to_openai_tool(tool) for tool in given.pop("tools", None) or ()]
        schema = json_schema_of(given.pop("response_format", None))
        if stop is not None:
            given["stop"] = stop
        return build_request(
            self,
            as_chat(messages),
            given,
            framework_messages=messages,
            tools=tools,
            schema=schema,
            shown=shown,
        )

    def _result(self, parts: list[Any], answer: ModelResponse, engine: Engine) -> ChatResult:
        message = as_ai_message(
            parts,
            response_metadata=response_metadata(answer, engine, self.model),
            usage_metadata=usage_metadata(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _last_chunk(self, answer: ModelResponse, engine: Engine) -> ChatGenerationChunk:
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                chunk_position="last",
                response_metadata=response_metadata(answer, engine, self.model),
                usage_metadata=usage_metadata(answer),
            )
        )


def _raise_first(answers: Sequence[Any], return_exceptions: bool) -> None:
    for answer in answers:
        if isinstance(answer, Exception) and not return_exceptions:
            raise answer


def _profile() -> ModelProfile:
    return ModelProfile(
        text_inputs=True,
        text_outputs=True,
        image_inputs=False,
        audio_inputs=False,
        video_inputs=False,
        tool_calling=True,
        tool_choice=can_constrain(),
        structured_output=can_constrain(),
    )

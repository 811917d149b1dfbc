"""A LangChain chat model on a local Hugging Face model, given recalled KV."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import Field, PrivateAttr

from lag_integrations.engine import Engine, EngineStream, Placement
from lag_integrations.errors import EmbedderMismatchError, LAGError, StoreError
from lag_integrations.kv.segment import Segment
from lag_integrations.memory import KVLogMemory, RecalledLog
from lag_integrations.trace import Message, as_message

logger = logging.getLogger(__name__)


class LAGChatModel(BaseChatModel):
    """A chat model that answers with the help of what agents did before.

    For the last user message it recalls logs from its memory, and gives the wrapped model their KV
    segments instead of their text: nothing is read again.

    What was used stands in ``response_metadata["lag"]``: ``log_ids`` and ``scores`` (best first),
    which of them were ``read_as_text`` (see `missing_segments`), ``injected_tokens``, and
    ``timings`` in seconds (``recall``, ``load``, ``injection``, ``time_to_first_token``). In
    ``usage_metadata``, injected tokens count as ``cache_read``.

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
    """

    model: str
    """Name or path of the model."""
    memory: KVLogMemory | None = Field(default=None, exclude=True, repr=False)
    """Where logs are recalled from; without one, an ordinary chat model."""
    k: int | None = None
    """Most logs to recall; the memory's own setting by default. Also per call: ``k=0`` is off."""
    min_score: float | None = None
    """Least similarity of a recalled log; the memory's own setting by default. Also per call."""
    placement: Placement = "before_question"
    """Where recalled segments stand in the prompt."""
    missing_segments: Literal["encode", "text"] = "encode"
    """What to do with a recalled log that has no valid segment for this model: encode its trace
    now, or give its last response as text this time (the worker encodes it meanwhile)."""
    best_last: bool = True
    """Whether the most relevant log stands nearest to the question (else farthest)."""
    max_tokens: int = 512
    """Most tokens to generate."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy. By default as the model's generation config says."""
    top_p: float | None = None
    """Probability mass to sample from."""
    top_k: int | None = None
    """Number of tokens to sample from."""
    seed: int | None = None
    """Seed for sampling."""
    stop: list[str] | None = None
    """Texts that end the answer."""
    device: str | None = None
    """Where the model goes; the GPU if there is one, by default."""
    dtype: str = "auto"
    """dtype of the weights; the checkpoint's own by default."""
    chat_template: str | None = None
    """A Jinja template to use instead of the tokenizer's own."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of ``from_pretrained``."""

    _engine: Engine | None = PrivateAttr(default=None)
    _loaded: bool = PrivateAttr(default=False)
    _load_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, model: Any, *, tokenizer: Any = None, **kwargs: Any) -> None:
        engine: Engine | None = None
        if isinstance(model, Engine):
            engine = model
        elif not isinstance(model, str | Path):
            if tokenizer is None:
                raise ValueError("Pass tokenizer=… together with a loaded model.")
            engine = Engine(model, tokenizer, chat_template=kwargs.get("chat_template"))
        if kwargs.get("memory") is not None:
            # LangChain's cache sees the prompt, not the memory: it would serve stale answers.
            kwargs.setdefault("cache", False)
        super().__init__(**{"model": engine.name if engine else str(model), **kwargs})
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The wrapped model, loaded at first use."""
        with self._load_lock:
            if self._engine is None:
                self._engine = Engine.load(
                    self.model,
                    device=self.device,
                    dtype=self.dtype,
                    chat_template=self.chat_template,
                    **self.model_kwargs,
                )
                self._loaded = True
            if self.memory is not None:
                self.memory.attach(self._engine)
            return self._engine

    def close(self) -> None:
        """Release a model that was loaded by name; a given engine is its owner's to close."""
        if self._loaded and self._engine is not None:
            self._engine.close()
            self._engine, self._loaded = None, False

    @property
    def _llm_type(self) -> str:
        return "lag-huggingface"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "seed": self.seed,
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "lag"
        params["ls_model_name"] = self.model
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
            [as_message(message) for message in messages],
            [convert_to_openai_tool(tool) for tool in tools or ()],
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        text = "".join(call.stream)
        message = AIMessage(
            content=text,
            response_metadata=self._response_metadata(call),
            usage_metadata=_usage(call.stream),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        try:
            for piece in call.stream:
                yield ChatGenerationChunk(message=AIMessageChunk(content=piece))
            yield ChatGenerationChunk(
                message=AIMessageChunk(
                    content="",
                    chunk_position="last",
                    response_metadata=self._response_metadata(call),
                    usage_metadata=_usage(call.stream),
                )
            )
        finally:
            call.stream.close()

    def _call(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> _Call:
        """Recall, load the segments, and start generating."""
        engine = self.engine
        chat = [as_message(message) for message in messages]
        k = kwargs.pop("k", self.k)
        min_score = kwargs.pop("min_score", self.min_score)
        max_tokens = kwargs.pop("max_tokens", kwargs.pop("max_new_tokens", self.max_tokens))
        started = time.perf_counter()
        logs = self._recall(chat, k, min_score)
        recalled = time.perf_counter()
        logs, segments, read = self._segments(logs, engine)
        texts = [log.log.last_response for log in read]
        chat = _with_texts(chat, texts[::-1] if self.best_last else texts)
        # A quarter of the window is kept for the answer at most: it may well be shorter.
        room = engine.window - engine.count_tokens(chat) - min(max_tokens, engine.window // 4)
        logs, segments = _fitting(logs, segments, room)
        timings = {"recall": recalled - started, "load": time.perf_counter() - recalled}
        stream = engine.stream(
            chat,
            segments[::-1] if self.best_last else segments,
            placement=kwargs.pop("placement", self.placement),
            max_new_tokens=max_tokens,
            stop=stop or self.stop or (),
            seed=kwargs.pop("seed", self.seed),
            **self._sampling(kwargs),
            **kwargs,
        )
        return _Call(stream, logs, read, timings)

    def _recall(
        self, chat: list[Message], k: int | None, min_score: float | None
    ) -> list[RecalledLog]:
        if self.memory is None:
            return []
        query = next((message.text for message in reversed(chat) if message.role == "user"), "")
        try:
            return self.memory.recall(query, k=k, min_score=min_score)
        except EmbedderMismatchError:
            raise  # nothing would ever be recalled: that has to be seen
        except StoreError as error:  # a memory that is unusable must not cost the answer
            logger.warning("Nothing is recalled. %s", error)
            return []

    def _segments(
        self, logs: list[RecalledLog], engine: Engine
    ) -> tuple[list[RecalledLog], list[Segment], list[RecalledLog]]:
        """The logs that this model can use, with their segments, and those to be given as text."""
        usable: list[tuple[RecalledLog, Segment]] = []
        read = []
        for log in logs:
            assert self.memory is not None
            try:
                if self.missing_segments == "encode":
                    usable.append((log, self.memory.segments([log], engine)[0]))
                    continue
                stored = self.memory.stored_segments([log], engine)[0]
                if stored is None:
                    read.append(log)
                else:
                    usable.append((log, stored))
            except LAGError as error:  # a memory that is unusable must not cost the answer
                logger.warning("Log %s is not used: %s", log.id, error)
        return [log for log, _ in usable], [segment for _, segment in usable], read

    def _sampling(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {}
        for name in ("temperature", "top_p", "top_k"):
            value = kwargs.pop(name, getattr(self, name))
            if value is not None:
                settings[name] = value
        if "temperature" in settings:
            settings["temperature"] = float(settings["temperature"])
            settings["do_sample"] = settings["temperature"] > 0
            if not settings["do_sample"]:
                return {"do_sample": False}
        return settings

    def _response_metadata(self, call: _Call) -> dict[str, Any]:
        generation = call.stream.generation
        return {
            "model_name": self.model,
            "model_provider": "lag",
            "finish_reason": generation.finish_reason,
            "lag": {
                "log_ids": [log.id for log in (*call.logs, *call.read)],
                "scores": [log.score for log in (*call.logs, *call.read)],
                "read_as_text": [log.id for log in call.read],
                "injected_tokens": generation.injected_tokens,
                "timings": {
                    **call.timings,
                    "injection": generation.injection_time,
                    "time_to_first_token": sum(call.timings.values())
                    + generation.time_to_first_token,
                },
            },
        }


def _with_texts(chat: list[Message], texts: list[str]) -> list[Message]:
    """The conversation with texts before its last question, where segments would stand."""
    places = [place for place, message in enumerate(chat) if message.role == "user"]
    if not texts or not places:
        return chat
    question = chat[places[-1]]
    before = "\n".join(texts) + "\n"
    content = (
        before + question.content
        if isinstance(question.content, str)
        else [{"type": "text", "text": before}, *question.content]
    )
    changed = question.model_copy(update={"content": content})
    return [*chat[: places[-1]], changed, *chat[places[-1] + 1 :]]


def _fitting(
    logs: list[RecalledLog], segments: list[Segment], room: int
) -> tuple[list[RecalledLog], list[Segment]]:
    """The logs that fit into some tokens, the most relevant first."""
    kept: list[tuple[RecalledLog, Segment]] = []
    for log, segment in zip(logs, segments, strict=True):
        if len(segment) <= room:
            kept.append((log, segment))
            room -= len(segment)
        else:
            logger.info("Log %s (%d tokens) does not fit the window.", log.id, len(segment))
    return [log for log, _ in kept], [segment for _, segment in kept]


@dataclass
class _Call:
    stream: EngineStream
    logs: list[RecalledLog]
    read: list[RecalledLog]
    timings: dict[str, float]


def _usage(stream: EngineStream) -> UsageMetadata:
    generation = stream.generation
    read = generation.prompt_tokens + generation.injected_tokens
    written = len(generation.token_ids)
    return UsageMetadata(
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        input_token_details=InputTokenDetails(cache_read=generation.injected_tokens),
    )

"""The wrapped Hugging Face model: prompts, segments of traces, answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lag_integrations.engine.answer import EngineStream
from lag_integrations.engine.attention import use_own_attention
from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.encodable import Encodable
from lag_integrations.engine.encoder import Encoder
from lag_integrations.engine.generation.grammar import can_constrain
from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.generator import AnswerGenerator
from lag_integrations.engine.inference_loop import InferenceLoop
from lag_integrations.engine.loading import load_model
from lag_integrations.engine.log_settings import (
    DEFAULTS,
    SELECTIONS,
    Calibration,
    LogForm,
    LogSettings,
    saved,
)
from lag_integrations.engine.quantization.scheme import Quantization
from lag_integrations.engine.rendered import RenderedPrompt
from lag_integrations.engine.requests import RequestBuilder
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.engine.scheduler import Scheduler
from lag_integrations.engine.step_tokens import step_tokens
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import CalibrationError
from lag_integrations.kv.fingerprint import fingerprint
from lag_integrations.kv.prefix_cache import PrefixCache
from lag_integrations.kv.probe import probe
from lag_integrations.kv.segment import Segment
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_PREFIX_BYTES = 512 * 2**20
"""Of keys and values of recent prompts."""


class Engine:
    """A causal language model that can be given segments.

    Thread safe: all that the model computes runs on one thread (`InferenceLoop`), each request with
    a cache of its own.

    Args:
        model: A loaded decoder-only model.
        tokenizer: Its fast tokenizer.
        chat_template: A Jinja template to use instead of the tokenizer's own.
        template_kwargs: Further variables for the template (``{"enable_thinking": False}``).
        prefix_cache_bytes: Most bytes of keys and values of recent prompts to keep, on the model's
            device, so that prompts which begin alike are not read again; 0 is off.

    Attributes:
        name: Name or path of the model, for people.
        tokenizer: Its tokenizer.
        chat_template: Its chat template, and what was learned about it.
        encoder: Encodes traces.
        requests: Makes requests of prompts.
        fingerprint: Identity of everything that decides whether a segment fits.
        positions: The learned position scheme; ``positions.window`` is the usable context.
        calibration: What was measured of this model, if it was; see `lag_integrations.calibrate`.

    Raises:
        UnsupportedModelError: The model's cache cannot be moved to other positions.
        PromptError: There is no usable chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prefix_cache_bytes: int = _PREFIX_BYTES,
    ) -> None:
        self.name = str(model.name_or_path or type(model).__name__)
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(tokenizer, chat_template, template_kwargs)
        model = model.eval()
        in_own_thread(lambda: self._learn(model))
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._runner = ModelRunner(
            model, tokenizer, self.positions, self.fingerprint.id, self._prefixes
        )
        scheduler = Scheduler(self._runner)
        self._loop = InferenceLoop(scheduler.step, scheduler.forget)
        self.encoder = Encoder(self._runner, scheduler, self._loop, self.chat_template)
        self._generator = AnswerGenerator(self._runner, scheduler, self._loop)
        self.requests = RequestBuilder(self._runner, self.chat_template)
        self.calibration = saved(self.fingerprint.id)

    def _learn(self, model: PreTrainedModel) -> None:
        use_own_attention(model)
        self.positions = probe(model)
        self.fingerprint = fingerprint(
            model, self.tokenizer, self.chat_template.source, self.positions
        )

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        quantization: Quantization | None = None,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prefix_cache_bytes: int = _PREFIX_BYTES,
        quiet: bool = False,
        **model_kwargs: Any,
    ) -> Engine:
        """Load a model and its tokenizer.

        Args:
            model: Hub id, local folder, or path of a GGUF file (needs ``gguf`` and
                ``accelerate``), whose tokenizer and chat template are used.
            device: Where to put it; the GPU if there is one, by default. Leave it out with
                ``device_map=…`` or quantised weights, which place themselves.
            dtype: dtype of the weights; the checkpoint's own by default.
            quantization: On a CPU, how many bits the weights keep; see `Quantization`. By default
                ``auto`` for a GGUF file, else as many as they have.
            chat_template: A Jinja template to use instead of the tokenizer's own.
            template_kwargs: Further variables for the template.
            prefix_cache_bytes: See `Engine`.
            quiet: Show no progress; by default there is one bar, on a terminal.
            **model_kwargs: Passed to ``from_pretrained`` (``quantization_config``,
                ``attn_implementation``, ``revision``, ``local_files_only``, ``token``…).

        Raises:
            UnsupportedModelError: There is no such model, or it cannot be used; says why.
        """
        loaded, tokenizer = load_model(
            model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            quiet=quiet,
            model_kwargs=model_kwargs,
        )
        return cls(
            loaded,
            tokenizer,
            chat_template=chat_template,
            template_kwargs=template_kwargs,
            prefix_cache_bytes=prefix_cache_bytes,
        )

    @property
    def model(self) -> PreTrainedModel:
        """The wrapped model.

        Raises:
            LAGError: The engine was closed.
        """
        return self._runner.model

    @property
    def closed(self) -> bool:
        """Whether the model was released."""
        return self._runner.closed

    @property
    def window(self) -> int:
        """Usable context, in tokens."""
        return self.positions.window

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens with which the model ends an answer."""
        return self._runner.end_tokens

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self._runner.vocabulary

    @property
    def can_constrain(self) -> bool:
        """Whether answers can be held to a grammar."""
        return can_constrain() and bool(self.end_tokens)

    def close(self) -> None:
        """Release the model's memory. Calling it again does nothing."""
        self._loop.call(self._runner.close)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def use_calibration(self, calibration: Calibration) -> None:
        """Take the settings of a calibration.

        Raises:
            CalibrationError: It is another model's.
        """
        if calibration.fingerprint != self.fingerprint.id:
            raise CalibrationError(
                f"The calibration is of model {calibration.fingerprint[:12]} ({calibration.model}),"
                f" not of {self.fingerprint.id[:12]} ({self.name}); calibrate this one."
            )
        self.calibration = calibration

    @property
    def log_settings(self) -> LogSettings:
        """How this model is given logs: what its calibration says, else the defaults."""
        return self.calibration or DEFAULTS

    @property
    def selection(self) -> Selection:
        """Which tokens of a trace are kept for this model, unless a memory says otherwise."""
        return SELECTIONS[self.log_settings.selection]

    @property
    def log_form(self) -> LogForm:
        """Whether this model is given logs as KV, or as text since KV is clearly worse."""
        return self.log_settings.form

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> RenderedPrompt:
        """Render a conversation, the header of the answer included.

        Args:
            messages: The conversation. If the last message is the assistant's, it is continued.
            tools: Tool schemas for the prompt.

        Raises:
            PromptError: The chat template refuses the conversation.
        """
        return self.chat_template.render(messages, tools=tools)

    def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> int:
        """Return the number of tokens of a rendered conversation."""
        return len(self.render(messages, tools).token_ids)

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that a tokenizer puts around it."""
        return self._runner.tokens_of(text)

    def encodable(
        self, trace: Trace, selection: Selection | None = None, *, cache_salt: str = ""
    ) -> Encodable:
        """Render a trace for `encode_all`; errors are those of `encode`.

        Args:
            trace: The trace.
            selection: What to keep; `selection` by default.
            cache_salt: Whose trace it is; see `request`.
        """
        return self.encoder.encodable(trace, selection or self.selection, cache_salt)

    def step_tokens(self, trace: Trace, step: int, encodable: Encodable) -> range | None:
        """Return which of a trace's kept tokens are a step; see `step_tokens.step_tokens`."""
        return step_tokens(trace, step, encodable, self.chat_template)

    def encode(self, trace: Trace, selection: Selection | None = None) -> Segment:
        """Encode a trace: one forward pass over all of it; the selected tokens' KV is kept.

        A trace longer than the window is cut: its oldest tokens after the system message go. The
        segment says how many in ``info["cut_tokens"]``, and a warning is logged.

        Args:
            trace: The trace.
            selection: What to keep; `selection` by default.

        Raises:
            TraceError: The trace holds nothing that the selection keeps.
            PromptError: The chat template refuses the trace.
        """
        return self.encoder.encode_batch([self.encodable(trace, selection)])[0]

    def encode_all(self, traces: Sequence[Encodable]) -> list[Segment]:
        """Encode many traces, batch by batch; return their segments in order."""
        return self.encoder.encode_all(traces)

    def generate(
        self, messages: Sequence[Message], segments: Sequence[Segment] = (), **settings: Any
    ) -> Generation:
        """Generate the answer to a conversation; arguments and errors are those of `request`."""
        stream = self.stream(messages, segments, **settings)
        for _ in stream:
            pass
        return stream.generation

    def stream(
        self, messages: Sequence[Message], segments: Sequence[Segment] = (), **settings: Any
    ) -> EngineStream:
        """Generate token by token; arguments and errors are those of `request`.

        Returns:
            An iterator over pieces of text, also for ``async for``; its ``generation`` is filled as
            it goes. The model is a few tokens ahead at most, and stops when the iterator is closed
            or dropped.
        """
        started = time.perf_counter()
        return self.start(self.request(messages, segments, **settings), started)

    def start(self, request: Request, started: float | None = None) -> EngineStream:
        """Generate for a request.

        Requests of any threads and event loops are answered together, one forward pass a token for
        all of them; each gets what it would get alone, up to rounding. Where the architecture
        cannot do that, they take turns.

        Args:
            request: The request.
            started: `time.perf_counter` when the clock of the first token began; now by default.
        """
        return self._generator.stream(request, started)

    def generate_batch(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer several requests, as `start` does, and wait for all."""
        streams = [self.start(request) for request in requests]
        try:
            for stream in streams:
                for _ in stream:
                    pass
        finally:
            for stream in streams:
                stream.close()
        return [stream.generation for stream in streams]

    @property
    def can_batch(self) -> bool:
        """Whether sequences can share a pass of this architecture; tried once."""
        return self._loop.call(lambda: self._runner.can_batch)

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Compute how likely given answers are.

        Args:
            requests: What is asked; nothing is generated for them.
            answers: Of each request the tokens of an answer, at least one.

        Returns:
            For each, fp32 ``[2, tokens]``: the log probability of each token of the answer (nats),
            and 1 where that token is the likeliest, else 0.
        """
        return self._generator.log_likelihoods(requests, answers)

    def request(
        self,
        messages: Sequence[Message],
        segments: Sequence[Segment] = (),
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        **settings: Any,
    ) -> Request:
        """Make a request of a conversation; errors are those of `RequestBuilder.build`.

        Args:
            messages: The conversation. If the last message is the assistant's, it is continued.
            segments: What the model shall remember; see `RequestBuilder.build`.
            tools: Tool schemas for the prompt.
            **settings: Further arguments of `RequestBuilder.build`.
        """
        return self.requests.build(
            self.render(messages, tools), segments, self.log_settings, **settings
        )

    def clear_salt(self, cache_salt: str) -> None:
        """Drop what was read lately under a salt, and do not keep what is being read now."""
        self._runner.prefixes.clear_salt(cache_salt)
        self._loop.wake()  # answers that nobody reads any more are dropped

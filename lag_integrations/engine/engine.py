"""The wrapped Hugging Face model: loading, prompts, encoding traces, generating with segments."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lag_integrations.engine.attention import attend_in_groups
from lag_integrations.engine.chat_template import ChatTemplate, Placement
from lag_integrations.engine.encoding import Encodable, batches
from lag_integrations.engine.generation.batch import can_decode_together, decode_together, step
from lag_integrations.engine.generation.constraint import Grammars, can_constrain
from lag_integrations.engine.generation.sampling import Sampling
from lag_integrations.engine.generation.sequence import Generation, Request, SequenceState
from lag_integrations.engine.log_settings import (
    DEFAULTS,
    SELECTIONS,
    Calibration,
    LogForm,
    LogSettings,
    saved,
)
from lag_integrations.engine.log_texts import around_logs
from lag_integrations.engine.token_selection import Selection
from lag_integrations.errors import (
    CalibrationError,
    ContextWindowError,
    LAGError,
    PromptError,
    SettingsError,
    UnsupportedModelError,
)
from lag_integrations.kv import pages
from lag_integrations.kv.cache import beginning, stack
from lag_integrations.kv.checks import check_segment
from lag_integrations.kv.encode import encode_rows, prefill, takes
from lag_integrations.kv.fingerprint import fingerprint
from lag_integrations.kv.inject import inject
from lag_integrations.kv.prefix_cache import PUBLIC, PrefixCache, length_of
from lag_integrations.kv.probe import probe
from lag_integrations.kv.segment import Segment
from lag_integrations.runtime.loading_lock import LOADING
from lag_integrations.runtime.openmp import computing, let_go_between_tokens
from lag_integrations.traces.trace import Message, Trace

logger = logging.getLogger(__name__)

_PREFIX_BYTES = 512 * 2**20
"""Of keys and values of what was read lately."""

_AT_ONCE_CPU, _AT_ONCE = 256, 8192
"""Tokens of traces that are encoded together; what is longer comes alone."""

_WORTH_A_PASS = 16
"""Tokens that are read apart, once, if the traces of a batch begin with them alike."""

_ROOM = 128
"""Tokens of an answer for which a cache has room from the first on."""

_IDLE_AFTER = 0.5
"""Least seconds without a forward pass after which nothing is being generated."""


class Engine:
    """A causal language model that can be given segments.

    Thread safe: forward passes run one after the other, each request with a cache of its own.

    Args:
        model: A loaded decoder-only model.
        tokenizer: Its fast tokenizer.
        chat_template: A Jinja template to use instead of the tokenizer's own.
        template_kwargs: Further variables for the template (``{"enable_thinking": False}``).
        prefix_cache_bytes: Keys and values of what was read lately that are kept at most, on the
            model's device, so that prompts which begin alike are not read again; 0 is off.

    Attributes:
        name: Name or path of the model, for people.
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
        attend_in_groups(model.device)
        self._lock = threading.RLock()
        self._model: PreTrainedModel | None = model.eval()
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self._compiled: Grammars | None = None
        self._worked_at = float("-inf")
        self._patience = _IDLE_AFTER
        self.name = str(model.name_or_path or type(model).__name__)
        self.tokenizer = tokenizer
        self.chat_template = ChatTemplate(tokenizer, chat_template, template_kwargs)
        with computing():
            self.positions = probe(model)
            self.fingerprint = fingerprint(
                model, tokenizer, self.chat_template.source, self.positions
            )
        self.calibration = saved(self.fingerprint.id)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        prefix_cache_bytes: int = _PREFIX_BYTES,
        **model_kwargs: Any,
    ) -> Engine:
        """Load a model and its tokenizer.

        Args:
            model: Hub id or local folder.
            device: Where to put it; the GPU if there is one, by default. Leave it out with
                ``device_map=…`` or quantised weights, which place themselves.
            dtype: dtype of the weights; the checkpoint's own by default.
            chat_template: A Jinja template to use instead of the tokenizer's own.
            template_kwargs: Further variables for the template.
            prefix_cache_bytes: As above.
            **model_kwargs: Passed to ``from_pretrained`` (``quantization_config``,
                ``attn_implementation``, ``revision``, ``local_files_only``, ``token``…).

        Raises:
            UnsupportedModelError: There is no such model, or it cannot be used; says why.
        """
        shared = ("revision", "token", "local_files_only", "trust_remote_code", "cache_dir")
        tokenizer_kwargs = {key: model_kwargs[key] for key in shared if key in model_kwargs}
        try:
            with LOADING:
                tokenizer = AutoTokenizer.from_pretrained(str(model), **tokenizer_kwargs)
                loaded = AutoModelForCausalLM.from_pretrained(
                    str(model), dtype=dtype, **model_kwargs
                )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UnsupportedModelError(
                f"The model {str(model)!r} cannot be loaded as a causal language model. Give a hub "
                f"id, a local folder, or a loaded model and tokenizer. ({error})"
            ) from error
        if "device_map" not in model_kwargs and "quantization_config" not in model_kwargs:
            loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
        if self._model is None:
            raise LAGError(f"The engine of {self.name} is closed; load it again.")
        return self._model

    @property
    def closed(self) -> bool:
        """Whether the model was released."""
        return self._model is None

    @property
    def window(self) -> int:
        """Usable context, in tokens."""
        return self.positions.window

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens with which the model ends an answer."""
        stated = self.model.generation_config.eos_token_id
        tokens = stated if isinstance(stated, list) else [stated, self.tokenizer.eos_token_id]
        return frozenset(token for token in tokens if token is not None)

    def close(self) -> None:
        """Release the model's memory. Calling it again does nothing."""
        with self._lock:
            self._model = None
            self._prefixes.clear()
        pages.release()
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

    def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> int:
        """Tokens of a rendered conversation, the header of the answer included."""
        return len(self.chat_template.render(messages, tools=tools).token_ids)

    def count_text(self, text: str) -> int:
        """Number of tokens of a text."""
        return len(self.tokens_of(text))

    def tokens_of(self, text: str) -> list[int]:
        """Tokens of a text, without those that a tokenizer puts around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

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
        return self.encode_all([self.encodable(trace, selection)])[0]

    def staged(self, segment: Segment) -> Segment:
        """A stored segment in the memory from which this model gets it fastest."""
        if self.model.device.type != "cuda":
            return segment
        try:
            return segment.pinned()
        except RuntimeError as error:
            logger.debug("A segment is not pinned (%s).", error)
            return segment

    def encodable(
        self, trace: Trace, selection: Selection | None = None, *, cache_salt: str = ""
    ) -> Encodable:
        """A trace as `encode_all` takes it; arguments and errors are those of `encode`.

        Args:
            trace: The trace.
            selection: What to keep; `selection` by default.
            cache_salt: Whose trace it is; see `request`.
        """
        found = Encodable.of(trace, selection or self.selection, self.chat_template, self.window)
        return replace(found, cache_salt=cache_salt)

    def check(self, segment: Segment, trace: Encodable) -> None:
        """Refuse a stored segment that this model would not make of a trace.

        Raises:
            SegmentCorruptedError: It is another model's or another trace's.
        """
        token_ids = [trace.token_ids[index] for index in trace.keep]
        check_segment(segment, self.positions, token_ids, trace.background)

    def encode_all(self, traces: Sequence[Encodable]) -> list[Segment]:
        """Encode many traces, those of like length together; gives their segments in order.

        Each is what it would be alone, up to rounding. What the traces of a batch begin with alike
        is read once.
        """
        segments: dict[int, Segment] = {}
        for batch in self.together(traces):
            with computing():
                found = self._encode_batch([traces[index] for index in batch])
            segments.update(zip(batch, found, strict=True))
        return [segments[index] for index in range(len(traces))]

    def together(self, traces: Sequence[Encodable]) -> list[list[int]]:
        """Which of the traces, by their indices, are encoded in one pass each."""
        with self._lock:
            known = [
                (
                    trace.cache_salt,
                    self._prefixes.match_length(trace.token_ids, salt=trace.cache_salt),
                )
                for trace in traces
            ]
        found = []
        # Those of which the same is known: of a run that was just generated, nearly all.
        for salted in dict.fromkeys(known):
            members = [index for index, its in enumerate(known) if its == salted]
            _, same = salted
            unread = [len(traces[index]) - same[0] for index in members]
            for batch in batches(unread, same[0], self.batch_tokens):
                found.append([members[place] for place in batch])
        return found

    def unread(self, trace: Encodable) -> int:
        """Tokens of a trace that would have to be read to encode it now."""
        with self._lock:
            known, _ = self._prefixes.match_length(trace.token_ids, salt=trace.cache_salt)
            return len(trace) - known

    @property
    def batch_tokens(self) -> int:
        """Tokens that are worth reading at once, when many traces are encoded."""
        return _AT_ONCE_CPU if self.model.device.type == "cpu" else _AT_ONCE

    def _encode_batch(self, traces: Sequence[Encodable]) -> list[Segment]:
        first, head = traces[0].token_ids, min(trace.head for trace in traces)
        salt, moment = traces[0].cache_salt, self._prefixes.moment()
        alike = len(first) - 1 if len(traces) == 1 else _alike([one.token_ids for one in traces])
        with self._lock, torch.no_grad():
            cache, known = self._prefixes.fork(first[: alike + 1], salt=salt)
            if len(traces) > 1 and alike - known >= _WORTH_A_PASS:
                prefill(self.model, torch.tensor(first[known:alike]), cache)
            segments = encode_rows(
                self.model,
                self.positions,
                [(trace.token_ids, trace.keep) for trace in traces],
                cache,
                fingerprint=self.fingerprint.id,
                infos=[trace.info for trace in traces],
                backgrounds=[trace.background for trace in traces],
            )
            # Traces of one agent begin alike; more of them is not kept, since nothing would
            # remove it when they are deleted.
            if known < head <= cache.get_seq_length():
                shared = beginning(cache, head)
                self._prefixes.insert(first[:head], shared, salt=salt, since=moment)
            return segments

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
            An iterator over pieces of text; its ``generation`` is filled as it goes. Each token is
            computed when it is asked for, so that dropping the iterator is enough to stop.
        """
        started = time.perf_counter()
        return self.start(self.request(messages, segments, **settings), started)

    def start(self, request: Request, started: float | None = None) -> EngineStream:
        """Generate for a request.

        Args:
            request: The request.
            started: `time.perf_counter` when the clock of the first token began; now by default.
        """
        return EngineStream(self, request, started or time.perf_counter())

    def request(
        self,
        messages: Sequence[Message],
        segments: Sequence[Segment] = (),
        *,
        placement: Placement | None = None,
        attention_temperature: float | None = None,
        question: str | None = None,
        tools: Sequence[dict[str, Any]] | None = None,
        answer_prefix: str = "",
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        top_logprobs: int | None = None,
        timeout: float | None = None,
        cache_salt: str = "",
        share_system: bool = False,
        **sampling: Any,
    ) -> Request:
        """A request to generate.

        Args:
            messages: The conversation. If the last message is the assistant's, it is continued.
            segments: What the model shall remember, in the order it shall see it; the last stands
                nearest to the question.
            placement: Where the segments stand; see `Placement`. By default what the calibration
                says, ``before_turn`` without one.
            attention_temperature: Of the attention to the segments; see `kv.splice`. By default
                what the calibration says, 0.9 without one; 1 leaves it as it is.
            question: The question's words, where the last user message holds more: segments stand
                before the line with these.
            tools: Tool schemas for the prompt.
            answer_prefix: What the answer begins with; not part of the generated text.
            max_new_tokens: Most tokens to generate.
            stop: Texts that end the answer and are not part of it.
            grammar: A grammar (llguidance's Lark dialect) that the answer fits, also if it is cut
                short; see `generation.constraint`.
            top_logprobs: Record each token's log probability, and that many alternatives.
            timeout: Most seconds from now until a stream gives up with `TimeoutError`.
            cache_salt: Whose prompt it is. What was read lately is reused for prompts with the same
                salt only, so that nobody can tell what others had read.
            share_system: Whether the system message and the tools may be reused for everybody: they
                hold nothing that is one user's.
            **sampling: Fields of `Sampling`; the model's own generation config by default.

        Raises:
            ContextWindowError: Prompt, segments and answer exceed the window.
            ConstraintError: The grammar is not valid, or no answer fits it in so few tokens.
            PromptError: The chat template refuses the conversation.
            SettingsError: A sampling setting is unknown or out of its range.
        """
        settings = Sampling.of(self.model.generation_config, sampling)
        prompt_ids, split = self.prompt(
            messages,
            placement=placement,
            question=question,
            segments=len(segments),
            tools=tools,
        )
        public = 0
        if share_system and (not segments or split > 0):
            public = min(self.chat_template.render(messages, tools=tools).head, split)
        if answer_prefix:
            prompt_ids = prompt_ids + self.tokens_of(answer_prefix)
        injected = sum(len(segment) for segment in segments)
        total = len(prompt_ids) + injected
        if total >= self.window:
            raise ContextWindowError(
                f"The prompt ({len(prompt_ids)} tokens) and the recalled segments ({injected}) "
                f"leave no room in the model's window of {self.window} tokens; shorten the "
                "conversation or recall fewer logs."
            )
        if attention_temperature is None:
            attention_temperature = self.log_settings.temperature
        if attention_temperature <= 0:
            raise SettingsError(
                f"attention_temperature is {attention_temperature}; it must be above 0."
            )
        if max_new_tokens < 1:
            raise SettingsError(f"max_tokens is {max_new_tokens}; it must be at least 1.")
        if top_logprobs is not None and not 0 <= top_logprobs <= self.vocabulary:
            raise SettingsError(
                f"top_logprobs is {top_logprobs}; it must be from 0 to {self.vocabulary}."
            )
        most = min(max_new_tokens, self.window - total)
        return Request(
            prompt_ids=prompt_ids,
            split=split,
            segments=tuple(segments),
            max_new_tokens=most,
            stop=tuple(stop),
            sampling=settings,
            constraint=None if grammar is None else self._grammars().constraint(grammar, most),
            top_logprobs=top_logprobs,
            suppressed_tokens=self.chat_template.suppressed_tokens | self.end_tokens,
            deadline=None if timeout is None else time.monotonic() + timeout,
            attention_temperature=attention_temperature,
            cache_salt=cache_salt,
            public=public,
            moment=self._prefixes.moment(),
        )

    def forget(self, cache_salt: str) -> None:
        """Let go of what was read lately under a salt, and of what is being read now."""
        self._prefixes.forget(cache_salt)

    def generate_batch(
        self, requests: Sequence[Request], wanted: Callable[[int], bool] = lambda _: True
    ) -> list[Generation]:
        """Answer several requests together, one forward pass a token for all of them.

        Each answer is what the request would get alone, up to rounding. Where the architecture
        cannot be padded, they are answered one after the other.

        Args:
            requests: The requests.
            wanted: Says of each, by its index, whether anybody still waits for it.
        """
        started = time.perf_counter()
        if len(requests) < 2 or not self.can_batch:
            streams = [self.start(request) for request in requests]
            for stream in streams:
                for _ in stream:
                    pass
            return [stream.generation for stream in streams]
        rows, caches = [], []
        with computing():
            for request in requests:
                row = self.row(request)
                cache, _ = self._begin(row, started, fast_forward=False)
                self._remember(row, cache)
                rows.append(row)
                caches.append(cache)
            decode_together(self._step_together, rows, caches, wanted)
        return [row.generation for row in rows]

    def row(self, request: Request) -> SequenceState:
        """The still empty answer to a request."""
        return SequenceState(request, self.tokenizer, self.end_tokens)

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def can_constrain(self) -> bool:
        """Whether answers can be held to a grammar."""
        return can_constrain() and bool(self.end_tokens)

    @cached_property
    def can_batch(self) -> bool:
        """Whether this architecture can answer padded requests together; tried once."""
        with self._lock, torch.no_grad():
            able = can_decode_together(self.model)
        if not able:
            logger.warning(
                "%s cannot read padded rows; batches are answered one after the other.", self.name
            )
        return able

    def wait_idle(self, timeout: float) -> None:
        """Wait until nothing is being generated, for work that is not urgent.

        Args:
            timeout: Most seconds to wait.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end and not self.idle:
            time.sleep(_IDLE_AFTER / 20)

    @property
    def idle(self) -> bool:
        """Whether nothing is being generated."""
        return time.monotonic() - self._worked_at >= self._patience

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One forward pass of an answer."""
        with self._lock, torch.no_grad():
            begun = self._worked_at = time.monotonic()
            yield
            self._worked_at = time.monotonic()
            # The next token of an answer comes about as late as this one.
            self._patience = max(_IDLE_AFTER, 2 * (self._worked_at - begun))

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        placement: Placement | None = None,
        question: str | None = None,
        segments: int = 0,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> tuple[list[int], int]:
        """The tokens of a prompt, and the index at which segments stand among them.

        Args:
            messages: The conversation.
            placement: Where segments stand.
            question: The question's words, see `request`.
            segments: How many there will be.
            tools: Tool schemas for the chat template.

        Raises:
            PromptError: There is no such placement, or the template refuses the conversation.
        """
        if placement is None:
            placement = self.log_settings.placement
        if placement not in get_args(Placement):
            known = ", ".join(get_args(Placement))
            raise PromptError(f"There is no placement {placement!r}; use one of {known}.")
        rendered = self.chat_template.render(messages, tools=tools)
        token_ids = rendered.token_ids
        if placement == "before_prompt":
            return token_ids, 0
        if placement == "after_system":
            return token_ids, rendered.head
        split = rendered.question(question)
        text_before = split > rendered.question()
        if placement == "before_turn" and not text_before:
            return token_ids, rendered.last_turn
        if segments:
            begin, end = map(self.tokens_of, around_logs(text_before))
            token_ids = [*token_ids[:split], *begin, *end, *token_ids[split:]]
            split += len(begin)
        return token_ids, split

    def _read(self, row: SequenceState) -> tuple[DynamicCache, torch.Tensor]:
        """Let the model read a prompt with its segments.

        Returns:
            The cache, and the logits after the last token ``[vocabulary]``.
        """
        with self._working():
            cache, known = self._prepare(row.request, row.generation)
            return cache, prefill(self.model, torch.tensor(row.request.prompt_items[known:]), cache)

    def _prepare(self, request: Request, figures: Generation) -> tuple[DynamicCache, int]:
        """Make a cache with the beginning of a prompt: what is known of it, and its segments.

        Args:
            request: The request.
            figures: Where to note what was reused, and how long injecting took.

        Returns:
            The cache, and how many of ``request.prompt_items`` it holds; never the last.
        """
        prompt_items = request.prompt_items
        salt = request.cache_salt
        cache, known = self._prefixes.fork(
            prompt_items, min(request.max_new_tokens, _ROOM), salt=salt
        )
        figures.reused_tokens = sum(isinstance(piece, int) for piece in prompt_items[:known])
        begin, end = request.split, request.split + len(request.segments)
        if known < end and request.segments:
            if known < begin:
                prefill(self.model, torch.tensor(prompt_items[known:begin]), cache)
                # Other logs may be recalled for the next question; this stands before them.
                self._prefixes.insert(prompt_items[:begin], cache, salt=salt, since=request.moment)
            started = time.perf_counter()
            segments = request.segments[max(0, known - begin) :]
            inject(
                cache,
                self.positions,
                [segment.to(self.model.device) for segment in segments],
                start=cache.get_seq_length(),
                fingerprint=self.fingerprint.id,
                temperature=request.attention_temperature,
            )
            figures.injection_time = time.perf_counter() - started
            known = end
        return cache, known

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Compute how likely given answers are.

        Requests with prompts of one length and with one answer are read in one pass.

        Args:
            requests: What is asked; nothing is generated for them.
            answers: Of each request the tokens of an answer, at least one.

        Returns:
            For each, fp32 ``[2, tokens]``: the log probability of each token of the answer (nats),
            and 1 where that token is the likeliest, else 0.
        """
        groups: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = {}
        caches = []
        found: dict[int, torch.Tensor] = {}
        with self._working():
            for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
                cache, known = self._prepare(request, Generation())
                caches.append(cache)
                unread = cast("tuple[int, ...]", request.prompt_items[known:])
                key = (cache.get_seq_length(), (*unread, *answer[:-1]), tuple(answer))
                groups.setdefault(key, []).append(index)
            for (_, unread, answer), members in groups.items():
                cache = stack([caches[index] for index in members])
                rows = torch.tensor([unread] * len(members), device=self.model.device)
                keep = (
                    {"logits_to_keep": len(answer)} if takes(self.model, "logits_to_keep") else {}
                )
                logits = self.model(
                    input_ids=rows, past_key_values=cache, use_cache=True, **keep
                ).logits
                logprobs = logits[:, -len(answer) :].float().log_softmax(-1)
                wanted = torch.tensor(answer, device=logprobs.device)
                of_answer = logprobs[:, torch.arange(len(answer)), wanted]
                likeliest = logprobs.argmax(-1) == wanted
                both = torch.stack([of_answer, likeliest.float()], dim=1).cpu()
                found.update(zip(members, both, strict=True))
        return [found[index] for index in range(len(caches))]

    def _remember(self, row: SequenceState, cache: DynamicCache, *, wait: bool = True) -> None:
        """Keep what was read for prompts that begin alike."""
        # Whoever leaves a stream, perhaps on an event loop, does not wait for others' passes.
        if not self._lock.acquire(blocking=wait):
            return
        try:
            # An error within a forward pass leaves a cache that holds more than was read.
            if self._model is not None and cache.get_seq_length() == length_of(row.read):
                salt, public = row.request.cache_salt, row.request.public
                self._prefixes.insert(row.read, cache, salt=salt, since=row.request.moment)
                if public and not self._prefixes.holds(row.read[:public]):
                    shared = beginning(cache, public)
                    self._prefixes.insert(row.read[:public], shared, salt=PUBLIC)
        finally:
            self._lock.release()

    def _begin(
        self, row: SequenceState, started: float, *, fast_forward: bool = True
    ) -> tuple[DynamicCache, str]:
        """Read a prompt and take the first token; gives the cache and the first text."""
        cache, logits = self._read(row)
        piece = row.advance(logits, fast_forward=fast_forward)
        row.generation.time_to_first_token = time.perf_counter() - started
        return cache, piece

    def _step(self, token_ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        """Let the model read generated tokens; gives the logits after them."""
        with self._working():
            return prefill(self.model, torch.tensor(token_ids), cache)

    def _step_together(
        self, token_ids: Sequence[Sequence[int]], cache: DynamicCache, mask: torch.Tensor
    ) -> torch.Tensor:
        with self._working():
            return step(self.model, token_ids, cache, mask)

    def _grammars(self) -> Grammars:
        with self._lock:
            if self._compiled is None:
                self._compiled = Grammars(self.tokenizer, self.vocabulary, self.end_tokens)
            return self._compiled


def _alike(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all rows begin with, less one where that is all of a row."""
    most = min(map(len, rows)) - 1
    return next((place for place in range(most) if len({row[place] for row in rows}) > 1), most)


class EngineStream(Iterator[str]):
    """Text as it is generated; each token is computed when it is asked for.

    ``generation`` holds the figures, complete after the last piece.
    """

    def __init__(self, engine: Engine, request: Request, started: float) -> None:
        row = engine.row(request)
        self.generation = row.generation
        self._pieces = self._generate(engine, row, started)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here. What was generated stays in ``generation``."""
        self._pieces.close()

    @staticmethod  # with itself in it, a stream that is dropped would not end at once
    def _generate(engine: Engine, row: SequenceState, started: float) -> Generator[str]:
        with computing():
            cache, piece = engine._begin(row, started)
            deadline = row.request.deadline
            try:
                while True:
                    let_go_between_tokens()
                    if piece:
                        yield piece
                    if row.done:
                        return
                    if deadline is not None and time.monotonic() > deadline:
                        raise TimeoutError(
                            "The answer took too long; raise timeout= or lower max_tokens=."
                        )
                    piece = row.advance(engine._step(row.pending_tokens, cache))
            finally:
                engine._remember(row, cache, wait=row.done)

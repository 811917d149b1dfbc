"""The wrapped Hugging Face model: loading, prompts, encoding traces, generating with segments."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lag_integrations.errors import ContextWindowError, LAGError, PromptError, UnsupportedModelError
from lag_integrations.kv.cache import Slots, append_layer, new_cache, read_layers
from lag_integrations.kv.encode import encode, prefill
from lag_integrations.kv.fingerprint import fingerprint
from lag_integrations.kv.probe import probe
from lag_integrations.kv.segment import Segment
from lag_integrations.kv.selection import LastResponse, Selection
from lag_integrations.kv.splice import splice
from lag_integrations.prompt import ChatFormat
from lag_integrations.streaming import Generating, TextStream
from lag_integrations.trace import Message, Trace

logger = logging.getLogger(__name__)

_HEADS = 4
_HEAD_TOKENS = 512
"""How many beginnings of prompts are kept read, and how long they may be."""

Placement = Literal["before_question", "after_system", "before_prompt"]
"""Where segments stand: in the last user turn, just before its text (the default: it measured best,
docs/evaluation.md); after the system message; or before everything, as in the paper."""


@dataclass
class Generation:
    """What a call generated, complete once the stream has ended.

    Attributes:
        text: The generated text, without stop sequence and special tokens.
        token_ids: The generated tokens.
        finish_reason: ``stop`` or ``length``; ``cancelled`` if the stream was abandoned.
        prompt_tokens: Tokens of the prompt that were computed.
        injected_tokens: Tokens of the segments, which were not.
        time_to_first_token: Seconds from the call to the first token.
        injection_time: Seconds thereof spent rotating and building the cache.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length", "cancelled"] = "cancelled"
    prompt_tokens: int = 0
    injected_tokens: int = 0
    time_to_first_token: float = 0.0
    injection_time: float = 0.0


class Engine:
    """A causal language model that can be given segments.

    Thread safe: calls run one after the other, each with a cache of its own.

    Args:
        model: A loaded decoder-only model.
        tokenizer: Its fast tokenizer.
        chat_template: A Jinja template to use instead of the tokenizer's own.

    Attributes:
        name: Name or path of the model, for people.
        fingerprint: Identity of everything that decides whether a segment fits.
        positions: The learned position scheme; ``positions.window`` is the usable context.

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
    ) -> None:
        self._lock = threading.RLock()
        self._model: PreTrainedModel | None = model.eval()
        self._heads: OrderedDict[tuple[int, ...], list[Slots]] = OrderedDict()
        self.name = str(model.name_or_path or type(model).__name__)
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer, chat_template)
        self.positions = probe(model)
        self.fingerprint = fingerprint(model, tokenizer, self.format.template, self.positions)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        chat_template: str | None = None,
        **model_kwargs: Any,
    ) -> Engine:
        """Load a model and its tokenizer.

        Args:
            model: Hub id or local folder.
            device: Where to put it; the GPU if there is one, by default. Leave it out with
                ``device_map=…`` or quantised weights, which place themselves.
            dtype: dtype of the weights; the checkpoint's own by default.
            chat_template: A Jinja template to use instead of the tokenizer's own.
            **model_kwargs: Passed to ``from_pretrained`` (``quantization_config``,
                ``attn_implementation``, ``revision``, ``local_files_only``, ``token``…).

        Raises:
            UnsupportedModelError: There is no such model, or it cannot be used; says why.
        """
        shared = ("revision", "token", "local_files_only", "trust_remote_code", "cache_dir")
        tokenizer_kwargs = {key: model_kwargs[key] for key in shared if key in model_kwargs}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model), **tokenizer_kwargs)
            loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=dtype, **model_kwargs)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UnsupportedModelError(
                f"The model {str(model)!r} cannot be loaded as a causal language model. Give a hub "
                f"id, a local folder, or a loaded model and tokenizer. ({error})"
            ) from error
        if "device_map" not in model_kwargs and "quantization_config" not in model_kwargs:
            loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(loaded, tokenizer, chat_template=chat_template)

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
            self._heads.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def count_tokens(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
    ) -> int:
        """Tokens of a rendered conversation, the header of the answer included."""
        return len(self.format.render(messages, tools=tools).token_ids)

    def encode(self, trace: Trace, selection: Selection | None = None) -> Segment:
        """Encode a trace: one forward pass over all of it; the selected tokens' KV is kept.

        A trace longer than the window is cut: its oldest tokens after the system message go. The
        segment says how many in ``info["cut_tokens"]``, and a warning is logged.

        Args:
            trace: The trace.
            selection: What to keep; the last response by default.

        Raises:
            TraceError: The trace holds nothing that the selection keeps.
            PromptError: The chat template refuses the trace.
        """
        selection = selection or LastResponse()
        rendered = self.format.render(trace.messages, generate=False)
        token_ids, keep = rendered.token_ids, selection.keep(rendered)
        if not selection.in_context:
            token_ids, keep = [token_ids[index] for index in keep], list(range(len(keep)))
        cut = max(0, len(token_ids) - self.window)
        if cut:
            head = min(rendered.head, self.window // 2) if selection.in_context else 0
            token_ids = token_ids[:head] + token_ids[head + cut :]
            keep = [
                index if index < head else index - cut
                for index in keep
                if index < head or index >= head + cut
            ]
            logger.warning(
                "A trace is %d tokens longer than the model's window of %d; its oldest tokens "
                "after the system message were cut (trace %s).",
                cut,
                self.window,
                trace.id,
            )
        info = {"selection": selection.name, "cut_tokens": str(cut)}
        with self._lock:
            return encode(
                self.model,
                self.positions,
                token_ids,
                keep,
                fingerprint=self.fingerprint.id,
                info=info,
            )

    def generate(
        self, messages: Sequence[Message], segments: Sequence[Segment] = (), **settings: Any
    ) -> Generation:
        """Generate the answer to a conversation; arguments and errors are those of `stream`."""
        stream = self.stream(messages, segments, **settings)
        for _ in stream:
            pass
        return stream.generation

    def stream(
        self,
        messages: Sequence[Message],
        segments: Sequence[Segment] = (),
        *,
        placement: Placement = "before_question",
        tools: Sequence[dict[str, Any]] | None = None,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        **generation_kwargs: Any,
    ) -> EngineStream:
        """Generate token by token.

        Args:
            messages: The conversation. If the last message is the assistant's, it is continued.
            segments: What the model shall remember, in the order it shall see it; the last stands
                nearest to the question.
            placement: Where the segments stand; see `Placement`.
            tools: Tool schemas for the chat template.
            max_new_tokens: Most tokens to generate.
            stop: Texts that end the answer and are not part of it.
            seed: Seed for sampling; other random states are left alone.
            **generation_kwargs: Passed to ``generate`` (``do_sample``, ``temperature``…).

        Returns:
            An iterator over pieces of text; its ``generation`` is filled as it goes. Closing it
            before the end stops the model.

        Raises:
            ContextWindowError: Prompt, segments and answer exceed the window.
            FingerprintMismatchError: A segment belongs to another model.
            PromptError: The chat template refuses the conversation.
        """
        started = time.perf_counter()
        prompt_ids, split = self.prompt(
            messages, placement=placement, segments=len(segments), tools=tools
        )
        injected = sum(len(segment) for segment in segments)
        total = len(prompt_ids) + injected
        if total >= self.window:
            raise ContextWindowError(
                f"The prompt ({len(prompt_ids)} tokens) and the recalled segments ({injected}) "
                f"leave no room in the model's window of {self.window} tokens; shorten the "
                "conversation or recall fewer logs."
            )
        job = Generating(
            prompt_ids=prompt_ids,
            max_new_tokens=min(max_new_tokens, self.window - total),
            stop=tuple(stop),
            seed=seed,
            settings=generation_kwargs,
        )
        generation = Generation(prompt_tokens=len(prompt_ids), injected_tokens=injected)
        return EngineStream(self, job, tuple(segments), split, generation, started)

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        placement: Placement = "before_question",
        segments: int = 0,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> tuple[list[int], int]:
        """The tokens of a prompt, and the index at which segments stand among them.

        Args:
            messages: The conversation.
            placement: Where segments stand.
            segments: How many there will be.
            tools: Tool schemas for the chat template.

        Raises:
            PromptError: There is no such placement, or the template refuses the conversation.
        """
        if placement not in get_args(Placement):
            known = ", ".join(get_args(Placement))
            raise PromptError(f"There is no placement {placement!r}; use one of {known}.")
        rendered = self.format.render(messages, tools=tools)
        token_ids = rendered.token_ids
        if placement == "before_prompt":
            return token_ids, 0
        if placement == "after_system":
            return token_ids, rendered.head
        split = rendered.question
        if segments:
            # The question begins on a line of its own, as it would after text.
            newline = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
            token_ids = [*token_ids[:split], *newline, *token_ids[split:]]
        return token_ids, split

    def _run(self, job: Generating, segments: tuple[Segment, ...], split: int) -> float:
        """One request, on the thread of its stream: build its cache, then generate into it."""
        with self._lock, torch.no_grad():
            model = self.model
            cache, injection_time = new_cache(), 0.0
            token_ids = torch.tensor(job.prompt_ids, dtype=torch.int64)
            if segments:
                head = token_ids[:split]
                self._read_head(head, cache)
                begun = time.perf_counter()
                moved = [segment.to(model.device) for segment in segments]
                splice(cache, self.positions, moved, start=split, fingerprint=self.fingerprint.id)
                token_ids = torch.cat(
                    [head, *(segment.token_ids for segment in segments), token_ids[split:]]
                )
                injection_time = time.perf_counter() - begun
            job.generate(model, self.tokenizer, token_ids, cache)
            return injection_time

    def _read_head(self, token_ids: torch.Tensor, cache: DynamicCache) -> None:
        """Fill a cache with what stands before the segments, copied if it was read lately.

        A small forward pass costs almost what a larger one does (the weights are read once each):
        without this, injecting would double the time to first token of a short prompt.
        """
        key = tuple(token_ids.tolist())
        if key in self._heads:
            self._heads.move_to_end(key)
            for layer, slots in enumerate(self._heads[key]):
                append_layer(cache, layer, slots)
        elif key:
            prefill(self.model, token_ids, cache)
            if len(key) <= _HEAD_TOKENS:
                # The cache appends by making new tensors, so these are never changed.
                self._heads[key] = read_layers(cache)
                if len(self._heads) > _HEADS:
                    self._heads.popitem(last=False)


class EngineStream(Iterator[str]):
    """Text as it is generated; closing or dropping it stops the model.

    ``generation`` holds the figures, complete after the last piece.
    """

    def __init__(
        self,
        engine: Engine,
        job: Generating,
        segments: tuple[Segment, ...],
        split: int,
        generation: Generation,
        started: float,
    ) -> None:
        self.generation = generation
        self._started = started
        self._stream = TextStream(
            job, engine.tokenizer, engine.end_tokens, lambda: engine._run(job, segments, split)
        )

    def __next__(self) -> str:
        generation = self.generation
        try:
            piece = next(self._stream)
        except StopIteration:
            generation.finish_reason = self._stream.finish_reason
            generation.token_ids = self._stream.token_ids
            generation.time_to_first_token = self._stream.first_token_at - self._started
            generation.injection_time = self._stream.result or 0.0
            raise
        generation.text += piece
        return piece

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self.close()

    def close(self) -> None:
        """Stop the model if it is still generating."""
        self._stream.close()

"""Forward passes of one model, one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from lag_integrations.engine.generation.batch import step
from lag_integrations.engine.generation.sequence import Generation, Request, SequenceState
from lag_integrations.errors import LAGError
from lag_integrations.kv.cache import beginning
from lag_integrations.kv.encode import prefill
from lag_integrations.kv.inject import inject
from lag_integrations.kv.position_scheme import Positions
from lag_integrations.kv.prefix_cache import PUBLIC, PrefixCache, count_slots

_ROOM = 128
"""Tokens of an answer for which a cache has room from the first on."""

_IDLE_AFTER = 0.5
"""Least seconds without a forward pass after which nothing is being generated."""


class ModelRunner:
    """Runs forward passes under a lock, each request with a cache of its own.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        positions: Its position scheme.
        fingerprint: Id of its fingerprint.
        prefixes: Keys and values of recent prompts.

    Attributes:
        lock: Held during a forward pass.
        prefixes: As above.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        positions: Positions,
        fingerprint: str,
        prefixes: PrefixCache,
    ) -> None:
        self.lock = threading.RLock()
        self.tokenizer = tokenizer
        self.prefixes = prefixes
        self.positions = positions
        self.fingerprint = fingerprint
        self._model: PreTrainedModel | None = model
        self._name = str(model.name_or_path or type(model).__name__)
        self._worked_at = float("-inf")
        self._patience = _IDLE_AFTER

    @property
    def model(self) -> PreTrainedModel:
        """The model.

        Raises:
            LAGError: It was released.
        """
        if self._model is None:
            raise LAGError(f"The engine of {self._name} is closed; load it again.")
        return self._model

    @property
    def closed(self) -> bool:
        """Whether the model was released."""
        return self._model is None

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens with which the model ends an answer."""
        stated = self.model.generation_config.eos_token_id
        tokens = stated if isinstance(stated, list) else [stated, self.tokenizer.eos_token_id]
        return frozenset(token for token in tokens if token is not None)

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that a tokenizer puts around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        """Release the model."""
        with self.lock:
            self._model = None
            self.prefixes.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing is being generated."""
        return time.monotonic() - self._worked_at >= self._patience

    def wait_idle(self, timeout: float) -> None:
        """Wait until nothing is being generated, for at most so many seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not self.idle:
            time.sleep(_IDLE_AFTER / 20)

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Hold the model for one forward pass of an answer."""
        with self.lock, torch.no_grad():
            begun = self._worked_at = time.monotonic()
            yield
            self._worked_at = time.monotonic()
            # The next token of an answer comes about as late as this one.
            self._patience = max(_IDLE_AFTER, 2 * (self._worked_at - begun))

    def read_prompt(self, sequence: SequenceState) -> tuple[DynamicCache, torch.Tensor]:
        """Let the model read a prompt with its segments.

        Returns:
            The cache, and the logits after the last token ``[vocabulary]``.
        """
        request = sequence.request
        with self.generating():
            cache, known = self.prepare(request, sequence.generation)
            unread = torch.tensor(request.prompt_items[known:])
            return cache, prefill(self.model, unread, cache)

    def prepare(self, request: Request, figures: Generation) -> tuple[DynamicCache, int]:
        """Make a cache with the beginning of a prompt: its known prefix, and its segments.

        Args:
            request: The request.
            figures: Where to note what was reused, and how long injecting took.

        Returns:
            The cache, and how many of ``request.prompt_items`` it holds; never the last.
        """
        items, salt = request.prompt_items, request.cache_salt
        room = min(request.max_new_tokens, _ROOM)
        cache, known = self.prefixes.fork(items, room, salt=salt)
        figures.reused_tokens = sum(isinstance(item, int) for item in items[:known])
        begin, end = request.split, request.split + len(request.segments)
        if known < end and request.segments:
            if known < begin:
                prefill(self.model, torch.tensor(items[known:begin]), cache)
                # Other logs may be recalled for the next question; this stands before them.
                self.prefixes.insert(items[:begin], cache, salt=salt, since=request.moment)
            started = time.perf_counter()
            segments = request.segments[max(0, known - begin) :]
            inject(
                cache,
                self.positions,
                [segment.to(self.model.device) for segment in segments],
                start=cache.get_seq_length(),
                fingerprint=self.fingerprint,
                temperature=request.attention_temperature,
            )
            figures.injection_time = time.perf_counter() - started
            known = end
        return cache, known

    def read_tokens(self, token_ids: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        """Let the model read generated tokens; return the logits ``[vocabulary]`` after them."""
        with self.generating():
            return prefill(self.model, torch.tensor(token_ids), cache)

    def read_rows(
        self, token_ids: Sequence[Sequence[int]], cache: DynamicCache, mask: torch.Tensor
    ) -> torch.Tensor:
        """Let the model read one more token a row; see `generation.batch.step`."""
        with self.generating():
            return step(self.model, token_ids, cache, mask)

    def keep_prefix(
        self, sequence: SequenceState, cache: DynamicCache, *, wait: bool = True
    ) -> None:
        """Keep what was read of a sequence, for prompts that begin alike.

        Args:
            sequence: The sequence.
            cache: What was read of it.
            wait: Whether to wait for a forward pass; without, nothing is kept during one.
        """
        # Whoever leaves a stream, perhaps on an event loop, does not wait for others' passes.
        if not self.lock.acquire(blocking=wait):
            return
        try:
            # An error within a forward pass leaves a cache that holds more than was read.
            if self._model is None or cache.get_seq_length() != count_slots(sequence.read):
                return
            request, read = sequence.request, sequence.read
            self.prefixes.insert(read, cache, salt=request.cache_salt, since=request.moment)
            if request.public and not self.prefixes.has_public(read[: request.public]):
                shared = beginning(cache, request.public)
                self.prefixes.insert(read[: request.public], shared, salt=PUBLIC)
        finally:
            self.lock.release()

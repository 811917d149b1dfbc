"""Answers to requests: token by token, together, or given, to see how likely they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from transformers import DynamicCache

from lag_integrations.engine.generation.batch import can_decode_together, decode_together
from lag_integrations.engine.generation.sequence import Generation, Request, SequenceState
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.kv.cache import stack
from lag_integrations.kv.encode import takes
from lag_integrations.runtime.openmp import computing, let_go_between_tokens

logger = logging.getLogger(__name__)


class AnswerGenerator:
    """Generates the answers to requests.

    Args:
        runner: Runs the forward passes.
        name: The model's name, for people.
    """

    def __init__(self, runner: ModelRunner, name: str) -> None:
        self._runner = runner
        self._name = name

    def new_sequence(self, request: Request) -> SequenceState:
        """Return the still empty answer to a request."""
        return SequenceState(request, self._runner.tokenizer, self._runner.end_tokens)

    def stream(self, request: Request, started: float) -> EngineStream:
        """Generate token by token.

        Args:
            request: The request.
            started: `time.perf_counter` when the clock of the first token began.
        """
        return EngineStream(self, self.new_sequence(request), started)

    def generate_batch(
        self, requests: Sequence[Request], wanted: Callable[[int], bool]
    ) -> list[Generation]:
        """Answer several requests together; see `Engine.generate_batch`."""
        started = time.perf_counter()
        if len(requests) < 2 or not self.can_batch:
            streams = [self.stream(request, time.perf_counter()) for request in requests]
            for stream in streams:
                for _ in stream:
                    pass
            return [stream.generation for stream in streams]
        sequences, caches = [], []
        with computing():
            for request in requests:
                sequence = self.new_sequence(request)
                cache, _ = self.begin(sequence, started, fast_forward=False)
                self._runner.keep_prefix(sequence, cache)
                sequences.append(sequence)
                caches.append(cache)
            decode_together(self._runner.read_rows, sequences, caches, wanted)
        return [sequence.generation for sequence in sequences]

    @cached_property
    def can_batch(self) -> bool:
        """Whether this architecture can answer padded requests together; tried once."""
        with self._runner.lock, torch.no_grad():
            able = can_decode_together(self._runner.model)
        if not able:
            logger.warning(
                "%s cannot read padded rows; batches are answered one after the other.", self._name
            )
        return able

    def begin(
        self, sequence: SequenceState, started: float, *, fast_forward: bool = True
    ) -> tuple[DynamicCache, str]:
        """Read a prompt and take the first token.

        Args:
            sequence: The answer, still empty.
            started: When its clock began.
            fast_forward: Whether to take tokens without a choice at once.

        Returns:
            The cache, and the first text.
        """
        cache, logits = self._runner.read_prompt(sequence)
        piece = sequence.advance(logits, fast_forward=fast_forward)
        sequence.generation.time_to_first_token = time.perf_counter() - started
        return cache, piece

    def steps(self, sequence: SequenceState, started: float) -> Generator[str]:
        """Yield the texts of an answer, each computed when it is asked for.

        Raises:
            TimeoutError: It took longer than the request allows.
        """
        with computing():
            cache, piece = self.begin(sequence, started)
            deadline = sequence.request.deadline
            try:
                while True:
                    let_go_between_tokens()
                    if piece:
                        yield piece
                    if sequence.done:
                        return
                    if deadline is not None and time.monotonic() > deadline:
                        raise TimeoutError(
                            "The answer took too long; raise timeout= or lower max_tokens=."
                        )
                    logits = self._runner.read_tokens(sequence.pending_tokens, cache)
                    piece = sequence.advance(logits)
            finally:
                self._runner.keep_prefix(sequence, cache, wait=sequence.done)

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Compute how likely given answers are; see `Engine.log_likelihoods`."""
        model = self._runner.model
        groups: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = {}
        caches = []
        found: dict[int, torch.Tensor] = {}
        with self._runner.generating():
            for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
                cache, known = self._runner.prepare(request, Generation())
                caches.append(cache)
                unread = cast("tuple[int, ...]", request.prompt_items[known:])
                key = (cache.get_seq_length(), (*unread, *answer[:-1]), tuple(answer))
                groups.setdefault(key, []).append(index)
            keep = takes(model, "logits_to_keep")
            for (_, unread, answer), members in groups.items():
                cache = stack([caches[index] for index in members])
                rows = torch.tensor([unread] * len(members), device=model.device)
                logits = model(
                    input_ids=rows,
                    past_key_values=cache,
                    use_cache=True,
                    **({"logits_to_keep": len(answer)} if keep else {}),
                ).logits
                logprobs = logits[:, -len(answer) :].float().log_softmax(-1)
                wanted = torch.tensor(answer, device=logprobs.device)
                of_answer = logprobs[:, torch.arange(len(answer)), wanted]
                likeliest = logprobs.argmax(-1) == wanted
                both = torch.stack([of_answer, likeliest.float()], dim=1).cpu()
                found.update(zip(members, both, strict=True))
        return [found[index] for index in range(len(caches))]


class EngineStream(Iterator[str]):
    """Text as it is generated; each token is computed when it is asked for.

    Attributes:
        generation: The figures, complete after the last piece.
    """

    def __init__(self, generator: AnswerGenerator, sequence: SequenceState, started: float) -> None:
        self.generation = sequence.generation
        self._pieces = generator.steps(sequence, started)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop here. What was generated stays in `generation`."""
        self._pieces.close()

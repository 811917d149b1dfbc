"""Answers to requests: written, or given, to see how likely they are."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from lag_integrations.engine.answer import Answer, EngineStream
from lag_integrations.engine.generation.sequence import Generation, Request, SequenceState
from lag_integrations.engine.inference_loop import InferenceLoop
from lag_integrations.engine.prompt_reading import PromptReading
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.engine.scheduler import Scheduler
from lag_integrations.kv.forward import Unread

_AT_ONCE = 1024
"""Tokens of given answers, and what is read of their prompts, in one pass."""


class AnswerGenerator:
    """Generates the answers to requests.

    Args:
        runner: Runs the forward passes.
        scheduler: Puts them together.
        loop: Runs them.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, loop: InferenceLoop) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._loop = loop

    def new_sequence(self, request: Request) -> SequenceState:
        """Return the still empty answer to a request."""
        return SequenceState(request, self._runner.tokenizer, self._runner.end_tokens)

    def stream(self, request: Request, started: float | None = None) -> EngineStream:
        """Have an answer written.

        Args:
            request: The request.
            started: `time.perf_counter` when the clock of the first token began; now by default.
        """
        started = time.perf_counter() if started is None else started
        answer = Answer(self.new_sequence(request), started, self._loop.wake)
        self._scheduler.add(answer)
        self._loop.wake()
        return EngineStream(answer)

    def log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """Compute how likely given answers are; see `Engine.log_likelihoods`."""
        return self._loop.call(lambda: self._log_likelihoods(requests, answers))

    def _log_likelihoods(
        self, requests: Sequence[Request], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        rows: list[Unread] = []
        for request, answer in zip(requests, answers, strict=True):
            reading = PromptReading(self._runner, request, Generation())
            tokens = reading.next_tokens(_AT_ONCE)
            while len(tokens) < reading.left:  # more, or segments, come before the last of it
                self._read([Unread(tokens, reading.cache)])
                reading.took(len(tokens))
                tokens = reading.next_tokens(_AT_ONCE)
            row = Unread([*tokens, *answer[:-1]], reading.cache, len(answer))
            if rows and sum(len(other.token_ids) for other in (*rows, row)) > _AT_ONCE:
                found += self._read(rows)
                rows = []
            rows.append(row)
        found += self._read(rows) if rows else []
        return [_judged(*pair) for pair in zip(found, answers, strict=True)]

    def _read(self, rows: Sequence[Unread]) -> list[torch.Tensor]:
        found = self._runner.read(rows)
        for logits in found:
            if isinstance(logits, Exception):
                raise logits
        return [logits for logits in found if isinstance(logits, torch.Tensor)]


def _judged(logits: torch.Tensor, answer: Sequence[int]) -> torch.Tensor:
    """Return of each token its log probability, and whether it is the likeliest."""
    logprobs = logits.float().log_softmax(-1)
    wanted = torch.tensor(list(answer), device=logprobs.device)
    of_answer = logprobs.gather(-1, wanted[:, None])[:, 0]
    likeliest = (logprobs.argmax(-1) == wanted).float()
    return torch.stack([of_answer, likeliest]).cpu()

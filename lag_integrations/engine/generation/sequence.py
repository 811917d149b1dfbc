"""One request while it is answered: what it asks for, and what was generated so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedTokenizerBase

from lag_integrations.engine.generation.detokenizer import AnswerText
from lag_integrations.engine.generation.lookup import LogLookup
from lag_integrations.engine.generation.sampling import Sampler, Sampling
from lag_integrations.kv.prefix_cache import Injected, PromptItem
from lag_integrations.kv.segment import Segment

if TYPE_CHECKING:
    from lag_integrations.engine.generation.constraint import Constraint

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Request:
    """What is to be generated.

    Attributes:
        prompt_ids: The prompt, without segments.
        split: Index among them at which the segments stand.
        segments: The segments, in the order in which the model shall see them.
        attention_temperature: Of the attention to them.
        max_new_tokens: Most tokens to generate.
        stop: Texts that end the answer.
        sampling: How tokens are picked.
        constraint: What the answer must look like; used up by one answer.
        deadline: `time.monotonic` after which a stream gives up.
        top_logprobs: Alternatives to record with each token's log probability; None records none.
        suppressed_tokens: Tokens that are not text.
        cache_salt: Whose prompt it is: what was read is reused under the same salt only.
        public: Tokens at the beginning of the prompt that may be reused under any salt.
        log_lookup: Whether `LogLookup` may propose tokens.
        moment: When it was made, see `PrefixCache.moment`.
    """

    prompt_ids: Sequence[int]
    split: int
    segments: tuple[Segment, ...]
    max_new_tokens: int
    stop: tuple[str, ...]
    sampling: Sampling
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    suppressed_tokens: frozenset[int] = frozenset()
    deadline: float | None = None
    attention_temperature: float = 1.0
    cache_salt: str = ""
    public: int = 0
    log_lookup: bool = True
    moment: int | None = None

    @property
    def injected(self) -> int:
        """Tokens of the segments."""
        return sum(len(segment) for segment in self.segments)

    @cached_property
    def prompt_items(self) -> tuple[PromptItem, ...]:
        """The prompt with the segments in their place."""
        temperature = self.attention_temperature
        segments = [Injected.of(segment, temperature) for segment in self.segments]
        return (*self.prompt_ids[: self.split], *segments, *self.prompt_ids[self.split :])

    @property
    def token_ids(self) -> list[int]:
        """The prompt with the segments' tokens in their place."""
        injected = [token for segment in self.segments for token in segment.token_ids.tolist()]
        return [*self.prompt_ids[: self.split], *injected, *self.prompt_ids[self.split :]]


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token with its log probability under the model (before penalties and masks).

    Attributes:
        token_id: The token.
        logprob: Natural logarithm of its probability.
        top: The likeliest tokens with theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Generation:
    """What was generated for a request.

    Attributes:
        text: The generated text, without stop sequence and special tokens.
        token_ids: The generated tokens.
        finish_reason: ``stop`` or ``length``; ``cancelled`` until it ended by itself.
        logprobs: One entry a generated token, if asked for.
        prompt_tokens: Tokens of the prompt.
        reused_tokens: Those of them that were not computed, since they were read lately.
        injected_tokens: Tokens of the segments, which were not computed either.
        proposed_tokens: Tokens that log lookup proposed.
        accepted_tokens: Those of them that the model took, without a pass of their own.
        time_to_first_token: Seconds from the call to the first token.
        injection_time: Seconds thereof spent rotating and building the cache.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "cancelled"
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_tokens: int = 0
    reused_tokens: int = 0
    injected_tokens: int = 0
    proposed_tokens: int = 0
    accepted_tokens: int = 0
    time_to_first_token: float = 0.0
    injection_time: float = 0.0


class SequenceState:
    """The answer to a request as it grows.

    Args:
        request: What is asked.
        tokenizer: The model's tokenizer.
        end_tokens: Tokens that end an answer.

    Attributes:
        request: What is asked.
        generation: The answer so far.
        pending_tokens: Its tokens that the model has not read yet.
    """

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]
    ) -> None:
        self.request = request
        self.generation = Generation(
            prompt_tokens=len(request.prompt_ids), injected_tokens=request.injected
        )
        self.pending_tokens: list[int] = []
        self._end_tokens = end_tokens
        self._text = AnswerText(tokenizer, request.stop, request.suppressed_tokens)
        self._lookup = LogLookup(request.token_ids)
        self._sampler = Sampler(request.sampling, request.token_ids, end_tokens)

    @property
    def read(self) -> tuple[PromptItem, ...]:
        """What the model has read: the prompt, and the answer without `pending_tokens`."""
        generated = self.generation.token_ids
        return (*self.request.prompt_items, *generated[: len(generated) - len(self.pending_tokens)])

    @property
    def done(self) -> bool:
        """Whether the answer has ended."""
        return self.generation.finish_reason != "cancelled"

    def propose(self, most: int, cost: float) -> list[int]:
        """Return how the answer may go on after what is pending; see `LogLookup.propose`."""
        if most <= 0 or not self.request.log_lookup:
            return []
        return self._lookup.propose(min(most, self._left - 1), cost)

    def advance(
        self, logits: torch.Tensor, proposed: Sequence[int] = (), cost: float = 0.0
    ) -> tuple[str, int]:
        """Take the next tokens: those that were proposed, as far as they are right, and one more.

        Args:
            logits: The model's logits after what was pending and after each proposed token,
                ``[1 + proposed, vocabulary]``.
            proposed: Tokens of `propose`, which the model has read.
            cost: What reading them took longer, in passes.

        Returns:
            New text, and how many of the proposed tokens were right.
        """
        text, right = "", 0
        while True:
            text += self._take_next(logits[right].float())
            taken = self.pending_tokens
            if self.done:
                break
            alike = 0
            while (
                alike < len(taken)
                and proposed[right + alike : right + alike + 1] == taken[alike : alike + 1]
            ):
                alike += 1
            right += alike
            if alike < len(taken):
                self.pending_tokens = taken[alike:]
                break
        if proposed:
            self._lookup.judge(len(proposed), right, cost)
            self.generation.proposed_tokens += len(proposed)
            self.generation.accepted_tokens += right
        if self.done:
            text += self._text.finish()
        self.generation.text += text
        return text, right

    def _take_next(self, logits: torch.Tensor) -> str:
        """Take one token, and those that the constraint then leaves no choice about."""
        self.pending_tokens = []
        constraint, top = self.request.constraint, self.request.top_logprobs
        scores = logits.clone()
        if constraint is not None:
            constraint.mask(scores)
        token = self._sampler.pick(scores)
        if constraint is not None:
            vetted = constraint.vet(token, self._left)
            if vetted is None:
                self.generation.finish_reason = "length"
                return ""
            token = vetted
        if top is not None:
            self.generation.logprobs.append(_logprob(logits, token, top))
        text = self._take(token)
        if constraint is not None and top is None:
            for token in constraint.forced(self._left):
                if not self.done:
                    text += self._take(token)
        return text

    @property
    def _left(self) -> int:
        return self.request.max_new_tokens - len(self.generation.token_ids)

    def _take(self, token: int) -> str:
        constraint, generation = self.request.constraint, self.generation
        generation.token_ids.append(token)
        self.pending_tokens.append(token)
        self._sampler.took(token)
        self._lookup.add(token)
        text = self._text.add(token)
        if constraint is not None:
            constraint.accept(token)
        if self._text.stopped or token in self._end_tokens:
            generation.finish_reason = "stop"
        elif constraint is not None and constraint.complete:
            generation.finish_reason = "length" if constraint.cut_short else "stop"
        elif self._left <= 0:
            generation.finish_reason = "length"
        return text


def _logprob(logits: torch.Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(top) if top else (logprobs[:0], logprobs[:0])
    pairs = zip(map(int, tokens.tolist()), values.tolist(), strict=True)
    return TokenLogprob(token, float(logprobs[token]), tuple(pairs))

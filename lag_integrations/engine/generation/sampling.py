"""How the next token is picked from the model's logits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lag_integrations.errors import SettingsError


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling; names and meaning are those of transformers and of OpenAI's API.

    Attributes:
        do_sample: Whether to sample; else the likeliest token is taken.
        temperature: Divides the logits.
        top_k: Sample from that many tokens.
        top_p: Sample from the likeliest tokens of that probability mass.
        min_p: Sample from tokens at least that likely, relative to the likeliest.
        typical_p: Mass of locally typical tokens to sample from.
        repetition_penalty: Divides the logits of tokens that occurred, in the prompt too.
        presence_penalty: Subtracted from the logits of tokens that were generated.
        frequency_penalty: Subtracted once for each time a token was generated.
        no_repeat_ngram_size: Token sequences of that length occur once only.
        min_new_tokens: Tokens before the answer may end.
        logit_bias: Added to the logits, by token id.
        seed: Seed of this request's own random numbers; torch's global state by default.
    """

    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    @classmethod
    def of(cls, defaults: GenerationConfig, settings: Mapping[str, Any]) -> Sampling:
        """Return the settings of a request; where it says nothing, those of the model's own config.

        A temperature says whether to sample: 0 is greedy.

        Raises:
            SettingsError: A setting is unknown, or out of its range.
        """
        names = {one.name for one in fields(cls)}
        if unknown := sorted(set(settings) - names):
            raise SettingsError(
                f"There is no setting {', '.join(map(repr, unknown))} for generating; there are "
                f"{', '.join(sorted(names))}."
            )
        given = {name: value for name, value in settings.items() if value is not None}
        own = {name: getattr(defaults, name, None) for name in names}
        sampling = cls(**{**{n: v for n, v in own.items() if v is not None}, **given})
        if "temperature" in given and "do_sample" not in given:
            sampling = replace(sampling, do_sample=sampling.temperature != 0)
        if sampling.do_sample and sampling.temperature == 0:
            raise SettingsError("temperature=0 is greedy: do_sample=True contradicts it.")
        sampling._check()
        whole = {name: getattr(sampling, name) for name in _RANGES if _RANGES[name][2]}
        as_int: dict[str, Any] = {
            name: int(value) for name, value in whole.items() if value is not None
        }
        bias = {int(token): value for token, value in sampling.logit_bias.items()}
        return replace(sampling, **as_int, logit_bias=bias)

    def _check(self) -> None:
        for name, (low, high, whole) in _RANGES.items():
            value = getattr(self, name)
            if value is None or (name == "temperature" and value == 0):
                continue
            if not low <= value <= high or (whole and value != int(value)):
                kind = "a whole number" if whole else "a number"
                raise SettingsError(f"{name} is {value}; it must be {kind} from {low} to {high}.")
        for token, bias in self.logit_bias.items():
            if not str(token).isdecimal() or not math.isfinite(bias):
                raise SettingsError(
                    f"logit_bias is {bias} for token {token}; give finite numbers by token id."
                )


_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (1e-4, 1e4, False),
    "top_k": (0, 2**31, True),
    "top_p": (0, 1, False),
    "min_p": (0, 1, False),
    "typical_p": (1e-6, 1, False),
    "repetition_penalty": (1e-4, 1e4, False),
    "presence_penalty": (-1e4, 1e4, False),
    "frequency_penalty": (-1e4, 1e4, False),
    "no_repeat_ngram_size": (0, 2**31, True),
    "min_new_tokens": (0, 2**31, True),
    "seed": (0, 2**63 - 1, True),
}


class Sampler:
    """Picks the tokens of one request.

    Args:
        sampling: How.
        prompt_ids: The prompt with the segments' tokens, for penalties.
        end_tokens: Tokens that end an answer.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], end_tokens: frozenset[int]
    ) -> None:
        self._sampling = sampling
        self._end_tokens = sorted(end_tokens)
        self._processors = _processors(sampling)
        self._generator: torch.Generator | None = None
        self._counts: Counter[int] = Counter()
        self._seen = list(prompt_ids) if self._processors else []
        self._drawn = 0

    def pick(self, logits: torch.Tensor) -> int:
        """Pick the next token, given logits ``[vocabulary]`` (fp32; they may be changed)."""
        sampling = self._sampling
        for token, bias in sampling.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        if self._drawn < sampling.min_new_tokens:
            logits[self._end_tokens] = -torch.inf
        if self._counts and (sampling.presence_penalty or sampling.frequency_penalty):
            tokens = list(self._counts)
            counts = torch.tensor([self._counts[token] for token in tokens], device=logits.device)
            logits[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if self._processors:
            seen = torch.tensor([self._seen], device=logits.device)
            processed = self._processors(seen, logits[None])[0]
            # Penalties may forbid all that a grammar allows; then the grammar counts.
            logits = processed if torch.isfinite(processed).any() else logits
        if not sampling.do_sample:
            return int(logits.argmax())
        if sampling.seed is not None and self._generator is None:
            self._generator = torch.Generator(logits.device).manual_seed(sampling.seed)
        weights = torch.softmax(logits, dim=-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))

    def took(self, token: int) -> None:
        """Note that a token was taken."""
        self._drawn += 1
        self._counts[token] += 1
        if self._processors:
            self._seen.append(token)


def _processors(sampling: Sampling) -> LogitsProcessorList:
    chosen = LogitsProcessorList()
    if sampling.repetition_penalty not in (None, 1.0):
        chosen.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if not sampling.do_sample:
        return chosen
    if sampling.temperature not in (None, 1.0):
        chosen.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p not in (None, 1.0):
        chosen.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p:
        chosen.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p not in (None, 1.0):
        chosen.append(TypicalLogitsWarper(float(sampling.typical_p)))
    return chosen

"""Prompts and settings to requests that can be generated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.generation.constraint import Grammars
from lag_integrations.engine.generation.sampling import Sampling
from lag_integrations.engine.generation.sequence import Request
from lag_integrations.engine.log_settings import LogSettings
from lag_integrations.engine.rendered import RenderedPrompt
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.engine.segment_placement import Placement, place_segments
from lag_integrations.errors import ContextWindowError, PromptError, SettingsError
from lag_integrations.kv.segment import Segment


class RequestBuilder:
    """Makes requests for one model, and checks what they ask.

    Args:
        runner: The model.
        chat_template: Its chat template.
    """

    def __init__(self, runner: ModelRunner, chat_template: ChatTemplate) -> None:
        self._runner = runner
        self._chat_template = chat_template

    def build(
        self,
        prompt: RenderedPrompt,
        segments: Sequence[Segment],
        log_settings: LogSettings,
        *,
        placement: Placement | None = None,
        attention_temperature: float | None = None,
        question: str | None = None,
        answer_prefix: str = "",
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        top_logprobs: int | None = None,
        timeout: float | None = None,
        cache_salt: str = "",
        share_system: bool = False,
        log_lookup: bool = True,
        **sampling: Any,
    ) -> Request:
        """Make a request of a rendered prompt.

        Args:
            prompt: The prompt.
            segments: What the model shall remember, in the order it shall see it; the last stands
                nearest to the question.
            log_settings: How the model is given logs, unless a call says otherwise.
            placement: Where the segments stand; see `Placement`.
            attention_temperature: Of the attention to the segments; see `kv.inject`. 1 leaves it as
                it is.
            question: The question's words, where the last user message holds more: segments stand
                before the line with these.
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
            log_lookup: Whether several tokens that stand in logs and prompt may be read in one
                pass; see `generation.lookup`. The answer is the same.
            **sampling: Fields of `Sampling`; the model's own generation config by default.

        Raises:
            ContextWindowError: Prompt, segments and answer exceed the window.
            ConstraintError: The grammar is not valid, or no answer fits it in so few tokens.
            PromptError: The chat template refuses the conversation.
            SettingsError: A sampling setting is unknown or out of its range.
        """
        settings = Sampling.of(self._runner.model.generation_config, sampling)
        prompt_ids, split = place_segments(
            prompt,
            log_settings.placement if placement is None else placement,
            question=question,
            segments=len(segments),
            tokens_of=self._runner.tokens_of,
        )
        public = min(prompt.head, split) if share_system and (not segments or split > 0) else 0
        if answer_prefix:
            prompt_ids = prompt_ids + self._runner.tokens_of(answer_prefix)
        if not prompt_ids:
            raise PromptError("The chat template renders nothing of this conversation.")
        if segments:
            split = min(split, len(prompt_ids) - 1)  # something is to be read behind them
        window = self._runner.positions.window
        injected = sum(len(segment) for segment in segments)
        total = len(prompt_ids) + injected
        if total >= window:
            raise ContextWindowError(
                f"The prompt ({len(prompt_ids)} tokens) and the recalled segments ({injected}) "
                f"leave no room in the model's window of {window} tokens; shorten the "
                "conversation or recall fewer logs."
            )
        if attention_temperature is None:
            attention_temperature = log_settings.temperature
        if attention_temperature <= 0:
            raise SettingsError(
                f"attention_temperature is {attention_temperature}; it must be above 0."
            )
        if max_new_tokens < 1:
            raise SettingsError(f"max_tokens is {max_new_tokens}; it must be at least 1.")
        if top_logprobs is not None and not 0 <= top_logprobs <= self._runner.vocabulary:
            raise SettingsError(
                f"top_logprobs is {top_logprobs}; it must be from 0 to {self._runner.vocabulary}."
            )
        most = min(max_new_tokens, window - total)
        return Request(
            prompt_ids=prompt_ids,
            split=split,
            segments=tuple(segments),
            max_new_tokens=most,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            sampling=settings,
            constraint=None if grammar is None else self._grammars.constraint(grammar, most),
            top_logprobs=top_logprobs,
            suppressed_tokens=self._chat_template.suppressed_tokens | self._runner.end_tokens,
            deadline=None if timeout is None else time.monotonic() + timeout,
            attention_temperature=attention_temperature,
            cache_salt=cache_salt,
            public=public,
            log_lookup=log_lookup,
            moment=self._runner.prefixes.moment(),
        )

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._runner.tokenizer, self._runner.vocabulary, self._runner.end_tokens)

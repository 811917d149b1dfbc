"""A prompt with its segments, as the model reads it part by part."""

from __future__ import annotations

import time
from itertools import takewhile
from typing import cast

from lag_integrations.engine.generation.sequence import Generation, Request
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.kv.inject import inject

_ROOM = 128
"""Tokens of an answer for which a cache has room from the first on."""
_WORTH_A_PASS = 16
"""Tokens with which prompts begin alike, from which on one of them waits for the other."""


def should_wait(runner: ModelRunner, request: Request, other: Request) -> bool:
    """Tell whether a prompt should wait until another is read, which begins alike.

    Args:
        runner: The model.
        request: The prompt.
        other: One that is being read.
    """
    if request.cache_salt != other.cache_salt or not runner.prefixes.max_bytes:
        return False
    items, salt = request.prompt_items, request.cache_salt
    pairs = zip(items, other.prompt_items, strict=False)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if alike < _WORTH_A_PASS or 2 * alike < len(items):
        return False
    return runner.prefixes.match_length(items, salt=salt)[0] < min(alike, len(items) - 1)


class PromptReading:
    """What of a prompt the model has read. It begins with what the prefix cache holds of it.

    Args:
        runner: The model.
        request: The request.
        figures: Where to note what was reused, and how long injecting took.

    Attributes:
        cache: Holds what was read.
    """

    def __init__(self, runner: ModelRunner, request: Request, figures: Generation) -> None:
        self._runner, self._request, self._figures = runner, request, figures
        self._items = request.prompt_items
        room = min(request.max_new_tokens, _ROOM)
        self.cache, self._known = runner.prefixes.fork(self._items, room, salt=request.cache_salt)
        self._begun = self._known
        figures.reused_tokens = sum(isinstance(item, int) for item in self._items[: self._known])

    @property
    def left(self) -> int:
        """Tokens that are still to be read, those of segments apart."""
        return sum(isinstance(item, int) for item in self._items[self._known :])

    def is_short(self, tokens: int) -> bool:
        """Tell whether there was little to read from the first on, segments apart."""
        read = self._known - self._begun
        return self.left + read <= tokens

    def next_tokens(self, most: int) -> list[int]:
        """Return the tokens that come next, and inject the segments where they stand.

        Args:
            most: How many at most.
        """
        begin, end = self._request.split, self._request.split + len(self._request.segments)
        if begin <= self._known < end:
            if self._begun < self._known == begin:
                # Other logs may be recalled for the next question; this stands before them.
                self._runner.prefixes.insert(
                    self._items[:begin],
                    self.cache,
                    salt=self._request.cache_salt,
                    since=self._request.moment,
                )
            self._inject(self._known - begin)
            self._known = end
        until = begin if self._known < begin < end else len(self._items)
        part = self._items[self._known : min(until, self._known + most)]
        return cast("list[int]", list(part))

    def took(self, tokens: int) -> None:
        """Note that the next tokens were read."""
        self._known += tokens

    def _inject(self, first: int) -> None:
        started, device = time.perf_counter(), self._runner.model.device
        inject(
            self.cache,
            self._runner.positions,
            [segment.to(device) for segment in self._request.segments[first:]],
            start=self.cache.get_seq_length(),
            fingerprint=self._runner.fingerprint,
            temperature=self._request.attention_temperature,
        )
        self._figures.injection_time = time.perf_counter() - started

"""What the next forward pass reads."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence

import torch

from lag_integrations.engine.answer import Answer, of_other_process
from lag_integrations.engine.generation.sequence import Request
from lag_integrations.engine.prompt_reading import PromptReading, should_wait
from lag_integrations.engine.runner import ModelRunner
from lag_integrations.kv.cache import shorten
from lag_integrations.kv.forward import Unread, wait_until_computed

logger = logging.getLogger(__name__)

_MOST_ANSWERS = 64
"""Answers in progress at once, those apart whose readers are behind; others wait."""
_PART_CPU, _PART = 512, 4096
"""Tokens of prompts that are read in one pass while no answer is being written."""
_LEAST_PART = 16
"""Tokens that are read of a prompt in any pass: else it would never end."""
_SHORT, _SHORT_TOGETHER = 64, 256
"""Prompts that are read in one pass whatever goes on: one late token, instead of a late answer."""
_PAUSE = 1.2
"""What reading long prompts may add to a pass that writes answers, in passes without."""
_LOOKUP_CPU, _LOOKUP = 64, 512
"""Tokens of a pass up to which log lookup may add some."""
_USUAL = 8
"""Tokens that log lookup usually adds."""
_SMOOTHING = 0.2
"""Weight of the last of measured times."""


class Scheduler:
    """Puts together passes: the next tokens of all answers in progress, then parts of prompts.

    Used on the loop's thread, but for `add`.

    Args:
        runner: Runs the passes.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._new: deque[Answer] = deque()
        self._answers: list[Answer] = []
        self._pass_seconds = _Average()
        self._added_token_seconds = _Average()
        self._lookup_cost = _Average(0.8)

    def add(self, answer: Answer) -> None:
        """Add an answer to be written; the caller wakes the loop."""
        self._new.append(answer)

    def step(self, extra: Unread | None = None) -> tuple[bool, Exception | None]:
        """Compute one pass.

        Args:
            extra: What is read besides; of no answer.

        Returns:
            Whether there was anything to read for answers, and what went wrong with `extra`.
        """
        error: Exception | None = None
        try:
            self._take_in()
            rows = self._writing()
            rows += self._reading(bool(rows))
            error = self._compute(rows, extra)
        except Exception as closed:  # or whatever else is the fault of none in particular
            for answer in list(self._answers):
                self._end(answer, closed)
            return bool(self._new), closed
        return bool(rows) or any(one.reading is None for one in self._answers), error

    @property
    def answering(self) -> bool:
        """Whether answers are being written."""
        return any(answer.writing for answer in self._answers)

    def part(self) -> int:
        """Return how many tokens of prompts, or of traces, the next pass may read."""
        return self._part(self.answering)

    def forget(self) -> None:
        """Drop all answers: they are those of the process that this one was forked from."""
        answers = [*self._answers, *self._new]
        self._answers, self._new = [], deque()
        self._runner.prefixes.begin_anew()
        for answer in answers:
            answer.reading = None
            answer.end(of_other_process())

    def _take_in(self) -> None:
        """Take in new answers; drop those that nobody reads or that took too long."""
        while self._new:
            self._answers.append(self._new.popleft())
        for answer in list(self._answers):
            if answer.cancelled:
                self._end(answer)
            elif answer.overdue:
                self._end(
                    answer,
                    TimeoutError("The answer took too long; raise timeout= or lower max_tokens=."),
                )

    def _writing(self) -> list[_Row]:
        """Return what is read of the answers in progress, with what log lookup proposes."""
        ready = [one for one in self._answers if one.writing and not one.waits_for_reader]
        on_cpu = self._runner.model.device.type == "cpu"
        room = (_LOOKUP_CPU if on_cpu else _LOOKUP) // max(1, len(ready)) - 1
        if any(not one.writing for one in self._answers):
            room = 0  # whoever waits for a first token does not wait for guesses
        cost = self._cost(len(ready))
        rows = []
        for answer in ready:
            pending = answer.sequence.pending_tokens
            proposed = answer.sequence.propose(room + 1 - len(pending), cost)
            rows.append(_Row(answer, [*pending, *proposed], proposed, cost))
        return rows

    def _cost(self, answers: int) -> float:
        """Return what the tokens that log lookup adds for one answer cost, in passes."""
        if answers < 2 or not self._pass_seconds.value or not self._added_token_seconds.value:
            return self._lookup_cost.value
        # Several answers are read by the kernels of prompts anyway: each token costs what it does
        # there, and a pass is worth a token of each answer.
        return _USUAL * self._added_token_seconds.value * answers / self._pass_seconds.value

    def _reading(self, answering: bool) -> list[_Row]:
        """Return parts of prompts, in the order in which they came."""
        rows: list[_Row] = []
        unread = [one for one in self._answers if not one.writing]
        left, short = self._part(answering) if unread else 0, _SHORT_TOGETHER
        begun = sum(one.reading is not None and not one.waits_for_reader for one in self._answers)
        before: list[Request] = []
        for answer in unread:
            if left <= 0 and short <= 0:
                break
            request, figures = answer.sequence.request, answer.sequence.generation
            try:
                if answer.reading is None:
                    # What prompts begin with alike is read once.
                    waits = any(should_wait(self._runner, request, other) for other in before)
                    before.append(request)
                    if waits or begun >= _MOST_ANSWERS:
                        continue
                    answer.reading = PromptReading(self._runner, request, figures)
                    begun += 1
                else:
                    before.append(request)
                is_short = answer.reading.is_short(_SHORT)
                most = max(left, short) if is_short else left
                tokens = answer.reading.next_tokens(most) if most > 0 else []
            except Exception as error:
                self._end(answer, error)
                continue
            if tokens:
                rows.append(_Row(answer, tokens))
                short -= len(tokens) if is_short else 0
                left -= len(tokens)
        return rows

    def _part(self, answering: bool) -> int:
        most = _PART_CPU if self._runner.model.device.type == "cpu" else _PART
        if not answering:
            return most
        seconds, each = self._pass_seconds.value, self._added_token_seconds.value
        if not seconds or not each:
            return _LEAST_PART
        return int(min(most, max(_LEAST_PART, _PAUSE * seconds / each)))

    def _compute(self, rows: list[_Row], extra: Unread | None) -> Exception | None:
        unread = [row.unread for row in rows]
        if extra is not None:
            unread.append(extra)
        if not unread:
            return None
        begun = time.perf_counter()
        found = self._runner.read(unread)
        wait_until_computed(self._runner.model.device)  # else its launching alone would be timed
        beside = 0 if extra is None else len(extra.token_ids)
        self._learn(rows, beside, time.perf_counter() - begun)
        for row, logits in zip(rows, found, strict=False):
            try:
                if isinstance(logits, Exception):
                    raise logits
                self._advance(row, logits)
            except Exception as error:
                self._end(row.answer, error)
        read = None if extra is None else found[-1]
        return read if isinstance(read, Exception) else None

    def _advance(self, row: _Row, logits: torch.Tensor) -> None:
        answer, sequence = row.answer, row.answer.sequence
        if not answer.writing:
            assert answer.reading is not None
            answer.reading.took(len(row.tokens))
            if answer.reading.left:
                return
            if any(other.reading is None for other in self._answers):
                self._keep_prefix(answer)
        before = answer.cache.get_seq_length() - len(row.proposed)
        piece, right = sequence.advance(logits, row.proposed, row.cost)
        if row.proposed:
            shorten(answer.cache, before + right)
        answer.put(piece)
        if sequence.done:
            self._end(answer)

    def _end(self, answer: Answer, error: Exception | None = None) -> None:
        self._answers.remove(answer)
        if error is None and answer.reading is not None:
            self._keep_prefix(answer)
        answer.reading = None  # whoever holds the answer need not hold what was read for it
        answer.end(error)

    def _keep_prefix(self, answer: Answer) -> None:
        try:
            self._runner.keep_prefix(answer.sequence, answer.cache)
        except Exception as failed:  # the answer is whole all the same
            logger.debug("A prefix is not kept: %s", type(failed).__name__)

    def _learn(self, rows: list[_Row], beside: int, seconds: float) -> None:
        """Learn from a pass what others will take."""
        prompts = beside + sum(len(row.tokens) for row in rows if not row.answer.writing)
        written = [row for row in rows if row.answer.writing]
        if not prompts and not any(row.proposed for row in written):
            self._pass_seconds.add(seconds)
        elif not prompts and len(written) == 1 and self._pass_seconds.value:
            self._lookup_cost.add(max(0.05, seconds / self._pass_seconds.value - 1))
        elif written and prompts >= _LEAST_PART and self._pass_seconds.value:
            self._added_token_seconds.add(max(0.0, seconds - self._pass_seconds.value) / prompts)


class _Row:
    """What one answer has read in a pass.

    Args:
        answer: The answer.
        tokens: The tokens.
        proposed: Those of them, the last, that may be wrong.
        cost: What these cost, in passes.
    """

    def __init__(
        self,
        answer: Answer,
        tokens: list[int],
        proposed: Sequence[int] = (),
        cost: float = 0.0,
    ) -> None:
        self.answer = answer
        self.cost = cost
        self.tokens = tokens
        self.proposed = list(proposed)
        self.unread = Unread(tokens, answer.cache, 1 + len(self.proposed))


class _Average:
    """A moving average; 0 before there is anything."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def add(self, value: float) -> None:
        """Note a value."""
        self.value += (value - self.value) * (_SMOOTHING if self.value else 1.0)

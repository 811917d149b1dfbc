"""Running ``generate`` on a thread and handing out its tokens as text."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import (
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

_END = object()


@dataclass
class Generating:
    """One request to ``generate``.

    Attributes:
        prompt_ids: The prompt, without segments.
        max_new_tokens: Most tokens to generate.
        stop: Texts that end the answer; who reads the tokens finds them and sets ``cancelled``.
        seed: Seed for sampling.
        settings: Further arguments of ``generate``.
        tokens: Where generated tokens arrive, one int each.
        cancelled: Set to make the model stop after the current token.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    stop: tuple[str, ...]
    seed: int | None
    settings: dict[str, Any]
    tokens: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def generate(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        token_ids: torch.Tensor,
        cache: DynamicCache,
    ) -> None:
        """Generate after ``token_ids`` (``[tokens]``), of which ``cache`` holds the beginning."""
        settings = dict(self.settings)
        if tokenizer.pad_token_id is None and model.generation_config.pad_token_id is None:
            settings.setdefault("pad_token_id", _first(model.generation_config.eos_token_id))
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices, enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed)
            model.generate(
                input_ids=token_ids[None].to(model.device),
                attention_mask=torch.ones_like(token_ids)[None].to(model.device),
                past_key_values=cache,
                use_cache=True,  # some configs say no, and would read everything again each step
                max_new_tokens=self.max_new_tokens,
                streamer=_Streamer(self.tokens),
                stopping_criteria=StoppingCriteriaList([_Cancelled(self.cancelled)]),
                **settings,
            )


class TextStream(Iterator[str]):
    """Runs a request on a thread; yields its text piece by piece, whole characters only.

    A piece that may be the beginning of a stop sequence is held back until that is known. An error
    on the thread is raised here. Closing the stream stops the model.

    Attributes:
        token_ids: Tokens generated so far.
        finish_reason: Why it ended.
        first_token_at: `time.perf_counter` at the first token.
        result: What ``run`` returned.
    """

    def __init__(
        self,
        job: Generating,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        run: Callable[[], float],
    ) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length", "cancelled"] = "cancelled"
        self.first_token_at = 0.0
        self.result: float | None = None
        self._job = job
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._run = run
        self._error: BaseException | None = None
        self._pieces = self._generate_pieces()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop the model if it is still generating."""
        self._pieces.close()

    def _work(self) -> None:
        try:
            self.result = self._run()
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error
        finally:
            self._job.tokens.put(_END)

    def _generate_pieces(self) -> Generator[str, None, None]:
        worker = threading.Thread(target=self._work, name="lag-generate", daemon=True)
        worker.start()
        given = 0
        end: int | None = None
        text = ""
        try:
            while end is None and (token := self._job.tokens.get()) is not _END:
                if not self.token_ids:
                    self.first_token_at = time.perf_counter()
                self.token_ids.append(token)
                text = self._decode()
                end = _stop_at(text, self._job.stop)
                safe = len(text) - _unsafe_tail(text, self._job.stop) if end is None else end
                if safe > given:
                    yield text[given:safe]
                    given = safe
            self._job.cancelled.set()
            worker.join()
            if self._error is not None:
                raise self._error
            if end is None:  # a character that the token limit cut in half is left out
                end = len(text.rstrip("\ufffd"))
                full = len(self.token_ids) >= self._job.max_new_tokens
                by_model = self.token_ids[-1:] and self.token_ids[-1] in self._end_tokens
                self.finish_reason = "length" if full and not by_model else "stop"
            else:
                self.finish_reason = "stop"
            if end > given:
                yield text[given:end]
        finally:
            self._job.cancelled.set()
            worker.join()

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self.token_ids, skip_special_tokens=True))


def _stop_at(text: str, stop: tuple[str, ...]) -> int | None:
    places = [place for place in (text.find(sequence) for sequence in stop) if place >= 0]
    return min(places) if places else None


def _unsafe_tail(text: str, stop: tuple[str, ...]) -> int:
    """Characters at the end that may yet change: half characters, and beginnings of a stop text."""
    held = len(text) - len(text.rstrip("\ufffd"))
    for sequence in stop:
        for length in range(min(len(sequence) - 1, len(text)), held, -1):
            if text.endswith(sequence[:length]):
                held = length
                break
    return held


def _first(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token


class _Streamer(BaseStreamer):
    def __init__(self, tokens: queue.SimpleQueue[Any]) -> None:
        self._tokens = tokens
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate hands over the prompt first
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._tokens.put(token)

    def end(self) -> None:
        """The thread itself says when it has ended."""


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        rows = input_ids.shape[0]
        stopped = torch.full((rows,), self._event.is_set(), device=input_ids.device)
        return stopped  # type: ignore[return-value]

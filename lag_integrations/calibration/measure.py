"""Measures a model on the built-in set."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from lag_integrations.calibration.cases import CASES, KINDS, Case
from lag_integrations.calibration.choose import Score, best, gain, is_clearly_worse
from lag_integrations.engine.generation.sequence import Request
from lag_integrations.engine.log_settings import (
    SELECTIONS,
    Calibration,
    Figures,
    LogSettings,
)
from lag_integrations.engine.log_texts import with_texts
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.engine.token_selection import LastTurn, Selection, TaskAndLastTurns
from lag_integrations.errors import (
    CalibrationError,
    ContextWindowError,
    PromptError,
    TraceError,
)
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.fluency import repetition
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

if TYPE_CHECKING:
    from lag_integrations.engine.engine import Engine

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_TEMPERATURES = (0.9, 1.0, 0.8)
"""In the order in which they are preferred where they are as good: the first is the default."""
_WRITTEN = 16
"""Tokens of a greedy answer: enough to see one fall apart."""
_READ = tuple(case for case in CASES if case.kind in ("repeated", "several"))
"""Questions that are also answered: those whose answers stand in the logs."""
_MOST_REPEATED = 0.2
_LEAST_LIKELY = -4.0
"""What makes greedy answers broken: repeated runs of three words, or a log likelihood (nats a
token, under the same model reading the logs as text) that no answer of its own would have. Sound
answers had -0.3 (0.5B) to -2.4 (135M, with other defaults); they may say what the last responses do
not."""


_PLACES: tuple[tuple[Selection, Placement], ...] = (
    (TaskAndLastTurns(), "before_turn"),
    (TaskAndLastTurns(), "before_question"),
    (LastTurn(), "before_turn"),
)
SETTINGS = tuple(
    LogSettings(form="kv", selection=selection.name, placement=placement, temperature=temperature)
    for selection, placement in _PLACES
    for temperature in _TEMPERATURES
)
"""What is compared; the default first, see `choose.best`."""


def measure(engine: Engine, progress: Progress | None = None) -> Calibration:
    """Measure a model on the built-in set, and choose its settings.

    Args:
        engine: The model.
        progress: Called with how many questions are done, and of how many.

    Raises:
        CalibrationError: The model cannot be measured: no usable chat turn, or too small a window.
    """
    started = time.perf_counter()
    counter = _Counter(engine)
    try:
        scores = counter.scores(progress)
        setting, repetition_found, fluency = counter.choose_fluent(scores)
    except (ContextWindowError, PromptError, TraceError) as error:
        raise CalibrationError(
            f"{engine.name} cannot be calibrated: it has a window of {engine.window} tokens, and "
            f"the built-in questions need a chat template with user and assistant turns and some "
            f"400 tokens. ({error})"
        ) from error
    mean, interval = gain(scores[setting.name], scores["text"])
    broken = repetition_found > _MOST_REPEATED or fluency < _LEAST_LIKELY
    return Calibration(
        fingerprint=engine.fingerprint.id,
        form="text" if broken or is_clearly_worse(mean, interval) else "kv",
        selection=setting.selection,
        placement=setting.placement,
        temperature=setting.temperature,
        gain=mean,
        gain_interval=interval,
        repetition=repetition_found,
        fluency=fluency,
        figures=tuple(_figures(name, of) for name, of in scores.items()),
        tokens=counter.tokens,
        seconds=time.perf_counter() - started,
        model=engine.name,
    )


class _Counter:
    """Asks one model the questions, and counts what it reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._segments: dict[tuple[str, str], Segment] = {}
        self.tokens = 0

    def scores(self, progress: Progress | None) -> dict[str, list[Score]]:
        """Return the score of each question, by setting; KV settings, then ``text``, ``none``."""
        found: dict[str, list[Score]] = {setting.name: [] for setting in SETTINGS}
        found |= {"text": [], "none": []}
        for done, case in enumerate(CASES):
            if progress is not None:
                progress(done, len(CASES))
            requests = {setting.name: self._with_kv(case, setting) for setting in SETTINGS}
            requests |= {"text": self._with_text(case), "none": self._request(case.question)}
            right = self._likelihoods(requests, case.stem, case.right)
            wrong = self._likelihoods(requests, case.stem, case.wrong) if case.wrong else {}
            for name, (likelihood, exact, total) in right.items():
                parroted = name in wrong and wrong[name][2] > total
                found[name].append(Score(likelihood, exact, parroted))
        if progress is not None:
            progress(len(CASES), len(CASES))
        return found

    def choose_fluent(
        self, scores: Mapping[str, Sequence[Score]]
    ) -> tuple[LogSettings, float, float]:
        """Return the best setting whose greedy answers are sound, else the best of all.

        With it, its share of repeated words, and its likelihood with the logs as text.
        """
        left = {setting.name: setting for setting in SETTINGS}
        tried = []
        while left:
            setting = left.pop(best({name: scores[name] for name in left}))
            repeated, fluency = self._fluency(setting)
            tried.append((setting, repeated, fluency))
            if repeated <= _MOST_REPEATED and fluency >= _LEAST_LIKELY:
                return tried[-1]
            logger.info("%s: greedy answers are not sound with %s.", self._engine.name, setting)
        return tried[0]

    def _fluency(self, setting: LogSettings) -> tuple[float, float]:
        requests = [self._with_kv(case, setting) for case in _READ]
        written = self._engine.generate_batch(requests)
        self.tokens += sum(len(one.token_ids) for one in written)
        texts = [self._with_text(case) for case in _READ]
        answers = [one.token_ids for one in written]
        under_text = self._engine.log_likelihoods(texts, answers)
        self.tokens += sum(len(request.prompt_ids) for request in texts)
        return (
            fmean(repetition(one.text) for one in written),
            fmean(float(one[0].mean()) for one in under_text),
        )

    def _likelihoods(
        self, requests: Mapping[str, Request], stem: str, answer: str
    ) -> dict[str, tuple[float, bool, float]]:
        """Return for each request the mean log likelihood, whether it is greedy, and the sum."""
        begun = self._engine.tokens_of(stem)
        token_ids = self._engine.tokens_of(answer)
        asked = [
            Request(
                prompt_ids=[*request.prompt_ids, *begun],
                split=request.split,
                segments=request.segments,
                max_new_tokens=len(token_ids),
                stop=(),
                sampling=request.sampling,
                attention_temperature=request.attention_temperature,
            )
            for request in requests.values()
        ]
        found = self._engine.log_likelihoods(asked, [token_ids] * len(asked))
        self.tokens += sum(len(one.prompt_ids) - one.split for one in asked)
        return {
            name: (float(one[0].mean()), bool(one[1].all()), float(one[0].sum()))
            for name, one in zip(requests, found, strict=True)
        }

    def _with_kv(self, case: Case, setting: LogSettings) -> Request:
        segments = [self._segment(log, SELECTIONS[setting.selection]) for log in case.logs]
        return self._request(case.question, segments, setting)

    def _with_text(self, case: Case) -> Request:
        chat = [Message(role="user", content=case.question)]
        texts = [log.last_response for log in case.logs]
        return self._engine.request(
            with_texts(chat, texts, None), max_new_tokens=_WRITTEN, do_sample=False
        )

    def _request(
        self, question: str, segments: Sequence[Segment] = (), setting: LogSettings | None = None
    ) -> Request:
        return self._engine.request(
            [Message(role="user", content=question)],
            segments,
            placement=None if setting is None else setting.placement,
            attention_temperature=None if setting is None else setting.temperature,
            max_new_tokens=_WRITTEN,
            do_sample=False,
        )

    def _segment(self, log: Trace, selection: Selection) -> Segment:
        key = (log.task, selection.name)
        if key not in self._segments:
            encodable = self._engine.encodable(log, selection)
            self.tokens += len(encodable)
            (self._segments[key],) = self._engine.encode_all([encodable])
        return self._segments[key]


def _figures(setting: str, scores: Sequence[Score]) -> Figures:
    of_kind = {kind: list(_of_kind(kind, scores)) for kind in KINDS}
    return Figures(
        setting=setting,
        value=fmean(score.value for score in scores),
        likelihood={
            kind: fmean(score.likelihood for score in found) for kind, found in of_kind.items()
        },
        exact=fmean(score.exact for score in scores),
        parroted=fmean(score.parroted for score in of_kind["instance"]),
    )


def _of_kind(kind: str, scores: Sequence[Score]) -> Iterator[Score]:
    return (score for case, score in zip(CASES, scores, strict=True) if case.kind == kind)

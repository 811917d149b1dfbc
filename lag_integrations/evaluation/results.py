"""From records to figures: how each arm did, and whether it differs from the standard agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal, get_args

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.floors import Floor, floors
from lag_integrations.evaluation.questions import Stratum
from lag_integrations.evaluation.records import Record
from lag_integrations.evaluation.statistics import Interval, difference, interval

BASELINE = "none"
"""Name of the arm that all others are compared with: the standard agent."""

Part = Stratum | Literal["all"]
"""A stratum, or all questions."""

Verdict = Literal["better", "worse", "unclear", "too few"]

# Bootstrap intervals of fewer questions are too narrow to be believed.
_FEWEST = 20


@dataclass(frozen=True)
class Comparison:
    """One arm against another, over the questions that both were asked.

    Attributes:
        arm: The arm.
        other: What it is compared with.
        questions: How many questions both were asked.
        difference: The arm's exact match minus the other's, question by question.
        gained: Share of the questions that it had right and the other wrong.
        harmed: Share of the questions that it had wrong and the other right.
    """

    arm: str
    other: str
    questions: int
    difference: Interval
    gained: float
    harmed: float

    @property
    def verdict(self) -> Verdict:
        """What the difference says. It is clear if its interval leaves zero out."""
        if self.questions < _FEWEST:
            return "too few"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "unclear"


@dataclass(frozen=True)
class Figures:
    """How one arm did on one part of the questions. Tokens are those of a question.

    Attributes:
        arm: The arm.
        part: The questions it is about.
        questions: How many there are.
        exact_match: Exact match, or accuracy.
        f1: F1.
        parroted: Share of the questions that were answered with their log's old answer, of those
            that have one; None if none has.
        calculated: Share of responses with the right calculation; None if no number is asked for.
        repetition: Mean share of repeated runs of three words in a response; None if unknown.
        log_likelihood: Mean of the responses with the logs as text, nats a token; None if unknown.
        rounds: Mean of the rounds that were run.
        answered: Share of questions that were given an answer.
        seconds: Median seconds of a question, of those that were answered alone; None if all were
            answered together with others.
        time_to_first_token: Median seconds to the first token, likewise.
        computed_tokens: Mean of the prompt tokens that were read.
        injected_tokens: Mean of the tokens whose KV was injected.
        generated_tokens: Mean of the tokens that were written.
        stored_bytes: Mean of the stored bytes of what was injected.
        abstained: Share of questions for which no log was given; None for the baseline.
        against_baseline: The arm against the baseline; None for the baseline, and where there is
            no question that both were asked.
    """

    arm: str
    part: Part
    questions: int
    exact_match: Interval
    f1: Interval
    parroted: Interval | None
    calculated: Interval | None
    repetition: float | None
    log_likelihood: float | None
    rounds: float
    answered: float
    seconds: float | None
    time_to_first_token: float | None
    computed_tokens: float
    injected_tokens: float
    generated_tokens: float
    stored_bytes: float
    abstained: float | None
    against_baseline: Comparison | None


@dataclass(frozen=True)
class Results:
    """All figures of an evaluation.

    Attributes:
        arms: Names of the arms, the baseline first.
        parts: "all", then the strata that there are.
        figures: By part and arm. An arm that was asked nothing of a part is not in it.
        against: By part, each arm against a further one that was chosen; none where that was not
            asked.
        leads: By part, the arm with the highest exact match against the next one.
        curve: Exact match of each arm if it had been cut after round 1, 2, and so on.
        floors: By arm, its figures with other floors; only of runs that can tell, see `floors`.
    """

    arms: tuple[str, ...]
    parts: tuple[Part, ...]
    figures: Mapping[Part, Mapping[str, Figures]]
    against: Mapping[Part, Sequence[Comparison]]
    leads: Mapping[Part, Comparison]
    curve: Mapping[str, Sequence[float]]
    floors: Mapping[str, Sequence[Floor]]


def summarize(
    records: Iterable[Record], *, min_score: float | None = -1.0, against: str = "text_last"
) -> Results:
    """Summarize records. Of two records of one arm and question, the last one counts.

    Args:
        records: The records.
        min_score: The floor with which they were made; None if it was no similarity.
        against: An arm to compare the others with, next to the baseline.

    Raises:
        EvaluationError: There are no records.
    """
    arms = _by_arm(records)
    if not arms:
        raise EvaluationError("There are no records to report; run an evaluation first.")
    found = {record.stratum for asked in arms.values() for record in asked.values()}
    parts: tuple[Part, ...] = ("all", *(one for one in get_args(Stratum) if one in found))
    figures: dict[Part, dict[str, Figures]] = {}
    leads: dict[Part, Comparison] = {}
    compared: dict[Part, Sequence[Comparison]] = {}
    for part in parts:
        of_part = {
            arm: kept
            for arm, asked in arms.items()
            if (kept := {id: r for id, r in asked.items() if part in ("all", r.stratum)})
        }
        figures[part] = {arm: _figures(arm, part, of_part) for arm in of_part}
        others = (arm for arm in of_part if arm not in (against, BASELINE))
        compared[part] = [one for arm in others if (one := _compare(arm, against, of_part))]
        best = sorted(of_part, key=lambda arm: -figures[part][arm].exact_match.mean)
        if len(best) > 1 and (lead := _compare(best[0], best[1], of_part)):
            leads[part] = lead
    baseline = arms.get(BASELINE, {})
    by_floor = {
        arm: of_arm
        for arm, asked in arms.items()
        if any(record.logs for record in asked.values())
        and min_score is not None
        and (of_arm := floors(asked, baseline, min_score))
    }
    return Results(tuple(arms), parts, figures, compared, leads, _curve(arms), by_floor)


_Asked = Mapping[str, Record]


def _by_arm(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    """Records by arm, then by question: arms as they appear, but the baseline first."""
    arms: dict[str, dict[str, Record]] = {}
    for record in records:
        arms.setdefault(record.arm, {})[record.question_id] = record
    return dict(sorted(arms.items(), key=lambda item: item[0] != BASELINE))


def _curve(arms: Mapping[str, _Asked]) -> dict[str, list[float]]:
    most = max((r.rounds for asked in arms.values() for r in asked.values()), default=0)
    return {
        arm: [
            fmean(
                r.exact_match and r.answered_in is not None and r.answered_in <= cut
                for r in asked.values()
            )
            for cut in range(1, most + 1)
        ]
        for arm, asked in arms.items()
    }


def _figures(arm: str, part: Part, arms: Mapping[str, _Asked]) -> Figures:
    records = list(arms[arm].values())
    compared = arm != BASELINE
    return Figures(
        arm=arm,
        part=part,
        questions=len(records),
        exact_match=interval([r.exact_match for r in records]),
        f1=interval([r.f1 for r in records]),
        parroted=_interval(r.parroted for r in records),
        calculated=_interval(r.calculated for r in records),
        repetition=_mean(r.repetition for r in records),
        log_likelihood=_mean(r.log_likelihood for r in records),
        rounds=fmean(r.rounds for r in records),
        answered=fmean(r.answered_in is not None for r in records),
        seconds=_median(r.seconds for r in records),
        time_to_first_token=_median(r.time_to_first_token for r in records),
        computed_tokens=fmean(r.computed_tokens for r in records),
        injected_tokens=fmean(r.injected_tokens for r in records),
        generated_tokens=fmean(r.generated_tokens for r in records),
        stored_bytes=fmean(r.stored_bytes for r in records),
        abstained=fmean(not r.logs for r in records) if compared else None,
        against_baseline=_compare(arm, BASELINE, arms) if compared else None,
    )


def _interval(values: Iterable[float | None]) -> Interval | None:
    known = [value for value in values if value is not None]
    return interval(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _compare(arm: str, other: str, arms: Mapping[str, _Asked]) -> Comparison | None:
    asked, others = arms[arm], arms.get(other, {})
    pairs = [
        (record.exact_match, others[id].exact_match) for id, record in asked.items() if id in others
    ]
    if not pairs:
        return None
    return Comparison(
        arm,
        other,
        questions=len(pairs),
        difference=difference([mine for mine, _ in pairs], [theirs for _, theirs in pairs]),
        gained=fmean(mine and not theirs for mine, theirs in pairs),
        harmed=fmean(theirs and not mine for mine, theirs in pairs),
    )

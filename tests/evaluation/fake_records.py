"""Records of an evaluation that never was, to look at what is made of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lag_integrations.evaluation.questions import Stratum
from lag_integrations.evaluation.records import Record

# Arm: how much likelier than `none` it is right, seconds to the first token, tokens it reads and is
# injected in a round.
_ARMS = {
    "none": (0.0, 0.35, 900, 0),
    "text_last": (0.12, 0.42, 1_120, 0),
    "text_all": (0.14, 1.1, 4_300, 0),
    "kv_last": (0.13, 0.38, 905, 230),
    "kv_last_action": (0.04, 0.36, 905, 40),
    "kv_last_n": (0.10, 0.41, 905, 520),
    "kv_all": (0.02, 0.6, 905, 3_300),
    "kv_no_context": (-0.08, 0.38, 905, 230),
    "cheatsheet": (0.06, 2.4, 1_350, 0),
}
_STRATA: dict[Stratum, float] = {"seen": 1.0, "overlapping": 0.5, "unseen": 0.1}


def record(**given: Any) -> Record:
    """A record of a question that was answered wrong, but for what is given."""
    plain = {
        "arm": "none",
        "question_id": "q1",
        "stratum": "seen",
        "answer": "Oslo",
        "answered_in": 1,
        "exact_match": False,
        "f1": 0.0,
        "rounds": 1,
        "seconds": 1.0,
        "time_to_first_token": 0.1,
        "computed_tokens": 100,
        "injected_tokens": 0,
        "generated_tokens": 10,
        "stored_bytes": 0,
    }
    return Record(**{**plain, **given})


def evaluation(questions: int = 60, rounds: int = 8) -> Iterator[Record]:
    """All arms, with so many questions of each stratum."""
    dice = random.Random(0)
    ids = [(stratum, f"{stratum}-{n}") for stratum in _STRATA for n in range(questions)]
    ease = {id: dice.gauss(0.3, 0.25) for _, id in ids}
    for arm, (help_, first, read, injected) in _ARMS.items():
        for stratum, id in ids:
            right = ease[id] + help_ * _STRATA[stratum] * 2 + dice.gauss(0, 0.1) > 0.4
            took = min(rounds, 1 + int(dice.expovariate(0.7 if arm.startswith("kv") else 0.35)))
            answered = right or dice.random() < 0.8
            logs = ("a", "b", "c") if arm != "none" and dice.random() < 0.9 else ()
            took = took if answered else rounds
            yield record(
                arm=arm,
                question_id=id,
                stratum=stratum,
                answered_in=took if answered else None,
                exact_match=right,
                f1=1.0 if right else round(dice.random() * 0.5, 2),
                rounds=took,
                seconds=took * first * dice.uniform(2, 4),
                time_to_first_token=first * dice.uniform(0.8, 1.3),
                computed_tokens=took * read,
                injected_tokens=took * injected if logs else 0,
                generated_tokens=took * 60,
                stored_bytes=injected * 23_040 if logs else 0,
                logs=logs,
                scores=(0.9, 0.7, 0.6) if logs else (),
            )

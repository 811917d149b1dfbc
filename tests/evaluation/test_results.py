import subprocess
import sys

import pytest

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.results import Comparison, summarize
from lag_integrations.evaluation.statistics import Interval, difference, interval
from tests.evaluation.fake_records import record


def some(arm, rights, **given):
    """Records of an arm: seen questions q0, q1, …, right (1) or wrong (0)."""
    return [
        record(arm=arm, question_id=f"q{n}", exact_match=right == "1", **given)
        for n, right in enumerate(rights)
    ]


def test_figures_of_an_arm():
    arm = [
        record(
            arm="kv_last",
            question_id=f"q{n}",
            exact_match=n == 0,
            f1=(1.0, 0.5, 0.0)[n],
            answered_in=(1, 2, None)[n],
            rounds=(1, 2, 3)[n],
            seconds=(1.0, 2.0, 9.0)[n],
            time_to_first_token=(0.1, 0.2, 0.9)[n],
            computed_tokens=(100, 200, 600)[n],
            injected_tokens=(30, 60, 0)[n],
            generated_tokens=(10, 20, 60)[n],
            stored_bytes=(3000, 6000, 0)[n],
            logs=(("a", "b"), ("c",), ())[n],
        )
        for n in range(3)
    ]
    found = summarize(arm).figures["all"]["kv_last"]
    assert (found.arm, found.part, found.questions) == ("kv_last", "all", 3)
    assert found.exact_match == interval([1, 0, 0])
    assert found.f1 == interval([1.0, 0.5, 0.0])
    assert found.f1.mean == 0.5
    assert found.rounds == 2
    assert found.answered == pytest.approx(2 / 3)
    assert found.seconds == 2.0  # the median
    assert found.time_to_first_token == 0.2
    assert (found.computed_tokens, found.injected_tokens, found.generated_tokens) == (300, 30, 30)
    assert found.stored_bytes == 3000
    assert found.abstained == pytest.approx(1 / 3)
    assert found.against_baseline is None  # there is none


def test_strata_are_told_apart():
    records = [
        record(question_id="a", stratum="unseen", exact_match=True),
        record(question_id="b", stratum="seen"),
        record(question_id="c", stratum="seen"),
        record(arm="kv_last", question_id="b", stratum="seen", exact_match=True),
    ]
    results = summarize(records)
    assert results.parts == ("all", "seen", "unseen")
    assert results.figures["all"]["none"].exact_match.mean == pytest.approx(1 / 3)
    assert results.figures["seen"]["none"].exact_match.mean == 0
    assert results.figures["unseen"]["none"].questions == 1
    assert list(results.figures["unseen"]) == ["none"]


def test_an_arm_against_the_baseline():
    records = [*some("none", "110000"), *some("kv_last", "10110")]  # the sixth was not asked yet
    found = summarize(records).figures["all"]["kv_last"].against_baseline
    assert (found.arm, found.other, found.questions) == ("kv_last", "none", 5)
    assert found.gained == pytest.approx(2 / 5)
    assert found.harmed == pytest.approx(1 / 5)
    assert found.difference == difference([1, 0, 1, 1, 0], [1, 1, 0, 0, 0])
    assert found.difference.mean == pytest.approx(1 / 5)


def test_the_baseline_has_no_logs_to_abstain_from():
    found = summarize(some("none", "10")).figures["all"]["none"]
    assert found.abstained is None
    assert found.against_baseline is None


def test_no_question_in_common():
    results = summarize([*some("none", "10"), record(arm="kv_last", question_id="other")])
    assert results.figures["all"]["kv_last"].against_baseline is None
    assert results.leads == {}


def test_the_best_arm_against_the_next():
    records = [*some("none", "0000"), *some("a", "0110"), *some("b", "1110"), *some("c", "0010")]
    lead = summarize(records).leads["all"]
    assert (lead.arm, lead.other) == ("b", "a")
    assert lead.difference == difference([1, 1, 1, 0], [0, 1, 1, 0])


def test_arms_keep_their_order_but_the_baseline_is_first():
    records = [*some("text_all", "1"), *some("kv_last", "1"), *some("none", "0")]
    records += some("text_all", "0")
    results = summarize(records)
    assert list(results.curve) == ["none", "text_all", "kv_last"]
    assert results.arms == ("none", "text_all", "kv_last")
    assert list(results.figures["all"]) == ["none", "text_all", "kv_last"]


def test_the_last_record_of_a_question_counts():
    results = summarize([*some("none", "00"), *some("none", "1")])
    assert results.figures["all"]["none"].questions == 2
    assert results.figures["all"]["none"].exact_match.mean == 0.5


@pytest.mark.parametrize(
    ("questions", "low", "high", "verdict"),
    [
        (20, 0.01, 0.2, "better"),
        (20, -0.2, -0.01, "worse"),
        (20, 0.0, 0.2, "unclear"),
        (20, -0.1, 0.2, "unclear"),
        (19, 0.01, 0.2, "too few"),
    ],
)
def test_verdicts(questions, low, high, verdict):
    found = Comparison("kv_last", "none", questions, Interval(0.1, low, high), 0.1, 0.0)
    assert found.verdict == verdict


def test_curve():
    records = [
        record(question_id="a", exact_match=True, answered_in=1, rounds=1),
        record(question_id="b", exact_match=True, answered_in=3, rounds=3),
        record(question_id="c", exact_match=False, answered_in=1, rounds=1),
        record(question_id="d", exact_match=False, answered_in=None, rounds=4),
        record(arm="kv_last", question_id="a", exact_match=True, answered_in=2, rounds=2),
    ]
    expected = {"none": [0.25, 0.25, 0.5, 0.5], "kv_last": [0.0, 1.0, 1.0, 1.0]}
    assert summarize(records).curve == expected


def test_no_records():
    with pytest.raises(EvaluationError, match="no records"):
        summarize([])


def test_figures_need_nothing_that_draws():
    code = (
        "import sys, lag_integrations.evaluation.results, lag_integrations.evaluation.report;"
        "assert not {'matplotlib', 'jinja2', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

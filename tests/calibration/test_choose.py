"""The rule that chooses, on figures as models give them."""

from __future__ import annotations

import pytest

from lag_integrations.calibration.cases import CASES, KINDS
from lag_integrations.calibration.choose import Score, best, gain, is_clearly_worse


def scores(*likelihoods: float, parroted: bool = False) -> list[Score]:
    return [Score(likelihood, likelihood > -0.1, parroted) for likelihood in likelihoods]


def test_the_likeliest_right_answers_win():
    assert best({"sharp": scores(-0.4, -0.4), "soft": scores(-0.1, -0.6)}) == "soft"
    assert best({"first": scores(-0.1), "second": scores(-0.1)}) == "first"


def test_an_old_answer_costs_more_than_a_sharper_one_gains():
    assert best({"sharp": scores(-0.1, parroted=True), "soft": scores(-0.9)}) == "soft"


def test_one_hopeless_question_does_not_decide():
    assert best({"sharp": scores(-30.0, -0.1), "soft": scores(-5.0, -0.2)}) == "sharp"


def test_kv_is_given_up_only_where_it_is_clearly_worse():
    text = scores(*[-0.2] * 17)
    assert not is_clearly_worse(*gain(text, text))
    assert not is_clearly_worse(*gain(scores(*[-0.3] * 17), text)), "hardly worse"
    assert is_clearly_worse(*gain(scores(*[-1.0] * 17), text))
    uneven = scores(-5.0, -5.0, *[-0.05] * 15)
    assert not is_clearly_worse(*gain(uneven, text)), "two questions may be chance"
    mean, (low, high) = gain(uneven, text)
    assert low < mean < high


def test_the_set_holds_every_kind_and_old_answers_only_where_they_are_wrong():
    assert {case.kind for case in CASES} == set(KINDS)
    assert len(CASES) == 17, "choose._T is Student's t for so many"
    for case in CASES:
        assert (case.wrong is not None) == (case.kind == "instance")
        last = case.logs[-1].last_response
        whole = " ".join(message.text for message in case.logs[-1].messages)
        right = case.right.strip(" .")
        if case.kind in ("repeated", "several"):
            assert right in last
        if case.kind == "dropped":
            assert right in whole
            assert right not in last
        if case.wrong is not None:
            assert case.wrong.strip() in last
            assert right not in whole
        if case.kind == "foreign":
            assert right not in whole


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_enough_questions(kind):
    assert sum(case.kind == kind for case in CASES) >= 3

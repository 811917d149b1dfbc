import warnings

import numpy as np
import pytest

from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.statistics import Interval, difference, interval


def test_the_interval_holds_the_true_mean_19_times_in_20():
    dice = np.random.default_rng(1)
    trials = 300
    found = [interval(dice.beta(0.5, 1.0, size=60)) for _ in range(trials)]
    held = sum(one.low <= 1 / 3 <= one.high for one in found)
    assert 0.92 <= held / trials <= 0.98


def test_its_width_is_that_of_theory():
    found = interval([1.0] * 120 + [0.0] * 280)
    half = 1.96 * (0.3 * 0.7 / 400) ** 0.5
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3 - half, abs=0.006)
    assert found.high == pytest.approx(0.3 + half, abs=0.006)


def test_the_same_scores_have_the_same_interval():
    scores = np.random.default_rng(2).random(50).tolist()
    assert interval(scores) == interval(scores)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        # What an exact binomial interval (Clopper and Pearson) says of 0 and of 20 of 20.
        ([0.0] * 20, Interval(0.0, 0.0, 0.1684)),
        ([1.0] * 20, Interval(1.0, 0.8316, 1.0)),
        ([1.0], Interval(1.0, 0.025, 1.0)),
        ([0.5, 0.5], Interval(0.5, 0.0791, 0.9209)),
    ],
)
def test_equal_scores_do_not_make_sure(scores, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interval(scores)
    assert found.mean == expected.mean
    assert found.low == pytest.approx(expected.low, abs=1e-4)
    assert found.high == pytest.approx(expected.high, abs=1e-4)


def test_few_scores_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = interval([0.0, 1.0])
    assert found == Interval(0.5, 0.0, 1.0)


def test_differences_are_paired():
    """Hard and easy questions: the arms differ little within a question, though much between."""
    dice = np.random.default_rng(3)
    base = np.repeat([0.0, 0.8], 40)
    mine, theirs = base + 0.05 + dice.normal(0, 0.02, 80), base + dice.normal(0, 0.02, 80)
    found = difference(mine.tolist(), theirs.tolist())
    assert found.mean == pytest.approx(0.05, abs=0.01)
    assert found.high - found.low < 0.02
    assert interval(mine).low < interval(theirs).mean < interval(mine).high


def test_equal_differences_may_be_of_either_sign():
    found = difference([True] * 3, [True] * 3)
    assert found.mean == 0
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 3))


def test_no_scores():
    with pytest.raises(EvaluationError, match="no scores"):
        interval([])


def test_scores_that_do_not_pair():
    with pytest.raises(EvaluationError, match="2 scores cannot be paired with 1"):
        difference([1.0, 0.0], [1.0])

"""Numbers in answers."""

from __future__ import annotations

import pytest

from lag_integrations.evaluation.numbers import last_number, numbers, same_number, says_number


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is $1,200.50.", [(1200.5,)]),
        ("15% of 3 million", [(0.15, 15.0), (3e6, 3.0)]),
        ("A loss of -$80,000, or \u22125.5 percent", [(-80000.0,), (-0.055, -5.5)]),
        ("S_0 and R2 are 7-year figures, 10-20", [(7.0,), (10.0,), (20.0,)]),
        (".5", [(0.5,)]),
        ("none", []),
    ],
)
def test_numbers_are_what_people_mean(text, found):
    assert [pytest.approx(values) for values in numbers(text)] == found


@pytest.mark.parametrize(
    ("gold", "value", "same"),
    [
        ("100", 101.0, True),
        ("100", 101.5, False),
        ("0.06", 0.055, True),  # it is rounded to two decimals
        ("0.06", 0.054, False),
        ("-2", 2.0, False),
    ],
)
def test_a_number_is_right_within_a_hundredth(gold, value, same):
    assert same_number(gold, value) is same


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("500 million / 60 million = 8.33", "8.33", True),
        ("8.33, for 500 million", "8.33", False),
        ("15 %", "15", True),
        ("15 %", "0.15", True),
        ("$15 million", "15000000", True),
        ("no idea", "15", False),
    ],
)
def test_the_last_number_is_the_answer(answer, gold, right):
    assert says_number(answer, gold) is right


def test_the_last_number_as_it_is_written():
    assert last_number("3 x 4 = $12.5 million") == "$12.5 million"
    assert last_number("none") is None

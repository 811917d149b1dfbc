"""Which tasks are about other cases."""

import pytest

from lag_integrations.traces.particulars import other_case

LOGGED = "What is the margin of $45,000 on sales of $150,000?"


@pytest.mark.parametrize(
    ("task", "other"),
    [
        ("What is the margin of $8 million on sales of $40 million?", True),
        ("And the margin of 45,000 on 160,000?", True),
        (LOGGED, False),
        ("The margin, with 45000 of 150'000.00 in sales?", False),
        ("What is the margin?", False),
        ("What is the margin of $45,000?", False),
        ("Margin of $45,000 on $150,000, in 2026?", False),
        ("", False),
    ],
)
def test_each_names_a_number_that_the_other_does_not(task, other):
    assert other_case(task, LOGGED) is other
    assert other_case(LOGGED, task) is other


@pytest.mark.parametrize(
    ("one", "other"),
    [("order A-17", "order A-18"), ("2.5 kg", "2.50 kg and 3"), ("1.000.000 €", "1.000.000 €")],
)
def test_numbers_are_what_they_say(one, other):
    assert other_case(one, other) is (one == "order A-17")

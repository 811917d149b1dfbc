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
    [
        ("2.5 kg", "2.50 kg and 3"),
        ("1.000.000 €", "1000000 €"),
        ("1'000.50", "1,000.5"),
        ("1.000,50", "1000.5"),
        ("1\u202f000 units", "1000 units"),
        ("2.000 of 7", "2000 of 7"),  # or 2, in English
        ("007", "7"),
        ("Today is 2026-12-02, 9:30. How do I reset it?", "Today is 2026-12-01. How do I reset?"),
        ("On 3/12/2026, reset it.", "On 4/12/2026, reset it."),
        ("Does it run on 3.11.4?", "Does it run on 3.12.1?"),
        ("2026-12-02T09:30:00Z 40", "2026-12-03T10:31:11.5+01:00 40"),
    ],
)
def test_what_is_written_otherwise_is_no_other_case(one, other):
    assert not other_case(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("order A-17", "order A-18"),
        ("2.000 auf 40.000", "3.000 auf 50.000"),
        ("1,000 of 5", "1 of 6"),
        ("revenue of 2019", "revenue of 2020"),
        ("2026-12-02: 17 boxes", "2026-12-02: 18 boxes"),
    ],
)
def test_each_may_write_its_numbers_in_any_way(one, other):
    assert other_case(one, other)

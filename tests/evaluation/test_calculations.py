"""Whether a response writes down the right calculation, whatever it makes of it."""

# ruff: noqa: RUF001

import pytest

from lag_integrations.evaluation.calculations import calculates


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("(12,000 / 50,000) × 100 = 24%", "24"),
        ("P_0 = D_1 / (r - g) = $1.50 / (9% - 2%) = $1.50 / 7% = $2.10", "21.43"),
        ("I = $12,000 × 0.045 × 6\n\nI = $12,000 × 0.27  I = $3,340", "3240"),
        ("r_a = 2% + 1.2 (7% - 2%)", "0.08"),
        ("15,000 / (1 + 0.04)^7", "11398.77"),
        ("15,000 / (1 + 4%) ** 7", "11398.77"),
        ("(20 million - 4 million) / 20 million * 100", "80"),
        ("4 million / $20 million", "20"),
        ("First 138.9 − 135 = 3.9; then ((138.9 – 135) / 135) x 100 = 27", "2.89"),
        ("-5 + 8 = 2", "3"),
        ("2 ^ 3 ^ 2", "512"),
        ("(3 + 4", "7"),
    ],
)
def test_right_calculations(response, gold):
    assert calculates(response, gold)


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("<ans>24</ans>", "24"),
        ("The answer is 24 %.", "24"),
        ("1,500,000 / 2,000,000 = 0.75", "1.33"),
        ("In 2026-11-30, about 3", "24"),
        ("5 / 0", "0"),
        ("9 ^ 9 ^ 9 ^ 9", "1"),
        ("(" * 5000 + "1 + 1", "2"),
        ("1 + " * 5000 + "1", "5001"),
        ("", "1"),
        ("* / ) (", "0"),
        ("0 ^ -1 + 2", "0"),
        ("(-8) ^ 0.5 + 1", "9"),
    ],
)
def test_what_is_none(response, gold):
    assert not calculates(response, gold)

"""How texts are cut into words for lexical search."""

from __future__ import annotations

import pytest

from lag_integrations.traces.terms import terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What, what? NOW!", ["what", "now"]),
        ("HTTP 429 from /v2/quotes", ["http", "429", "from", "v2", "quotes"]),
        ("ERR_4017 on import", ["err_4017", "err", "4017", "on", "import"]),
        ("FRW-5510-2207-S", ["frw", "5510", "2207", "s"]),
        ("Straße \uff21\uff22\uff23", ["strasse", "abc"]),
        ("高铁票和kafka", ["高铁", "铁票", "票和", "kafka"]),
        ("猫", ["猫"]),
        ("ألو مرحبا", ["ألو", "مرحبا"]),
        ("__ -- …", []),
    ],
)
def test_words(text, expected):
    assert terms(text) == expected

"""How answers read."""

from __future__ import annotations

import pytest

from lag_integrations.traces.fluency import repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("to to", 0.0),
        ("past the past", 0.0),
        ("the past the past the past", 0.5),
        ("The code is 7. the code is 8.", 1 / 6),
        ("to to to to", 0.5),
        ("", 0.0),
    ],
)
def test_what_is_said_again_is_repeated(text, share):
    assert repetition(text) == pytest.approx(share)

"""What fuzzing has found stays mended, and its targets work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import TARGETS

FINDINGS = Path(__file__).parent / "findings"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_findings(name: str) -> None:
    target: Any = import_module(f"tests.fuzz.{name}")
    kept = sorted((FINDINGS / name).glob("*"))
    with target.opened() as check:
        for seed in target.seeds():
            check(seed)
        for finding in kept:
            check(finding.read_bytes())

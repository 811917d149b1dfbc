from __future__ import annotations

from tests.evaluation.conftest import one_puppet, puppet

__all__ = ["one_puppet", "puppet"]

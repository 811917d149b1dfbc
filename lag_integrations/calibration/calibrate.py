"""Calibration of a model: measured once, used from then on."""

from __future__ import annotations

from collections.abc import Callable

from lag_integrations.calibration.measure import measure
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.log_settings import Calibration, save


def calibrate(
    engine: Engine, progress: Callable[[int, int], None] | None = None, *, again: bool = False
) -> Calibration:
    """Measure a model on a built-in set, choose its settings, and use them from now on.

    The calibration is kept in the user's cache folder by fingerprint, so that it runs once;
    `KVLogMemory.attach` keeps it in the store, too. It reads some 8,500 tokens.

    Args:
        engine: The model.
        progress: Called with how many questions are done, and of how many.
        again: Measure even if there is a calibration.

    Returns:
        What was measured, and chosen.

    Raises:
        CalibrationError: The model cannot be measured (no chat turn, too small a window), or the
            calibration cannot be written.
    """
    if engine.calibration is None or again:
        found = measure(engine, progress)
        save(found)
        engine.use_calibration(found)
    assert engine.calibration is not None
    return engine.calibration

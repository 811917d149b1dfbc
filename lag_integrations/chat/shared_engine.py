"""The engine of a framework's model, and of all copies that the framework makes of it."""

from __future__ import annotations

import threading
from typing import Any

from lag_integrations.engine.engine import Engine


class SharedEngine:
    """An engine that is given, or loaded at first use.

    Args:
        model: Name or path of the model.
        settings: Arguments of `Engine.load`.
        engine: The engine, if it is given.
    """

    def __init__(self, model: str, settings: dict[str, Any], engine: Engine | None) -> None:
        self._model = model
        self._settings = settings
        self._engine = engine
        self._given = engine is not None
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str | None:
        """Identity of a given engine, whose name may not tell it from another."""
        return self._engine.fingerprint.id if self._given and self._engine else None

    def fits(self, model: str, settings: dict[str, Any]) -> bool:
        """Return whether a model with these settings may use it."""
        return (self._given or settings == self._settings) and model == self._model

    def get(self) -> Engine:
        """Return the engine; load it first if need be."""
        with self._lock:
            if self._engine is None:
                self._engine = Engine.load(self._model, **self._settings)
            return self._engine

    def close(self) -> None:
        """Release an engine that was loaded here."""
        with self._lock:
            if not self._given and self._engine is not None:
                self._engine.close()
                self._engine = None

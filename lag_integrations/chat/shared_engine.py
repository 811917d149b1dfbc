"""The engine of a framework's model, and of all copies that the framework makes of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from lag_integrations.chat.remote import RemoteModel
from lag_integrations.chat.settings import ModelSettings
from lag_integrations.errors import SettingsError

if TYPE_CHECKING:
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
        from lag_integrations.engine.engine import Engine  # torch, when it is needed

        with self._lock:
            if self._engine is None:
                self._engine = Engine.load(self._model, **self._settings)
            return self._engine

    @property
    def window(self) -> int:
        """Usable context, in tokens."""
        return self.get().window

    def close(self) -> None:
        """Release an engine that was loaded here."""
        with self._lock:
            if not self._given and self._engine is not None:
                self._engine.close()
                self._engine = None


def shared_model(
    settings: ModelSettings,
    engine: Engine | None,
    known: SharedEngine | RemoteModel | None = None,
) -> SharedEngine | RemoteModel:
    """Return the model of a framework's model, here or elsewhere.

    Args:
        settings: The framework's model.
        engine: The engine, if it is given.
        known: That of the model of which this one is a copy, which is used if it fits.

    Raises:
        SettingsError: A loaded model is given, and a URL of one elsewhere.
    """
    if settings.base_url is not None:
        if engine is not None:
            raise SettingsError("A loaded model runs here; base_url= is for one elsewhere.")
        is_known = isinstance(known, RemoteModel) and known.fits(settings)
        return known if known and is_known else RemoteModel(settings)
    loading = settings.loading
    if engine is None and isinstance(known, SharedEngine) and known.fits(settings.model, loading):
        return known
    return SharedEngine(settings.model, loading, engine)


def engine_of(model: SharedEngine | RemoteModel | None) -> Engine:
    """Return the engine of a model.

    Raises:
        SettingsError: The model runs elsewhere.
    """
    if not isinstance(model, SharedEngine):
        raise SettingsError("The model runs at base_url=…; there is no engine here.")
    return model.get()

"""The metadata that users give their runs, such as user or project, as metadata of the logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lag_integrations.errors import TraceError
from lag_integrations.traces.reserved_metadata import SCOPE

Metadata = Mapping[str, Any]

_OWN = frozenset(
    (
        "source",
        "run_name",
        "thread_id",
        "sources",
        "earlier_runs",
        "abandoned",
        "error",
        "verdict",
    )
)
"""Keys that captures and verdicts use themselves."""


def plain_metadata(metadata: Metadata) -> dict[str, str | int | float]:
    """Return the entries of a framework's metadata that are texts, numbers or booleans."""
    return {
        key: _plain(value)
        for key, value in metadata.items()
        if isinstance(key, str) and isinstance(value, str | int | float) and not is_own(key)
    }


def in_scope(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata, marked so that runs of equal content that differ in it are two logs."""
    return {**metadata, SCOPE: sorted(metadata)} if metadata else {}


def may_be_one_run(first: Metadata, second: Metadata) -> bool:
    """Return whether the metadata of two halves of a run agree in the keys that both have."""
    return all(first[key] == value for key, value in second.items() if key in first)


def scope_of(metadata: Metadata) -> dict[str, Any]:
    """Return the metadata that `in_scope` marked in a log."""
    names = metadata.get(SCOPE)
    return {str(name): metadata.get(str(name)) for name in names} if isinstance(names, list) else {}


def is_own(key: str) -> bool:
    """Return whether this package uses a key itself."""
    return key in _OWN or key.startswith("lag_")


def checked_metadata(metadata: Metadata | None) -> dict[str, Any]:
    """Return a copy of the metadata of a handler's logs, checked.

    Raises:
        TraceError: A key is no text or is taken, or a value cannot be filtered by.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise TraceError(f"metadata= is a {type(metadata).__name__}; it must be a mapping.")
    checked: dict[str, Any] = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or is_own(key):
            raise TraceError(
                f"metadata= cannot have the key {str(key)[:80]!r}: keys are texts, and capture "
                "uses some itself (" + ", ".join(sorted(_OWN)) + ", lag_…)."
            )
        items = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(item, str | int | float) for item in items):
            raise TraceError(
                f"metadata={{{key[:80]!r}: …}} is a {type(value).__name__}; values are texts, "
                "numbers, booleans, or lists of these."
            )
        plain = [_plain(item) for item in items]
        checked[key] = plain if isinstance(value, list | tuple) else plain[0]
    return checked


def _plain(value: str | int | float) -> str | int | float:
    """Return an enum's or NumPy's value as its plain Python type."""
    if isinstance(value, bool):
        return value
    kind: Any = next(kind for kind in (str, int, float) if isinstance(value, kind))
    return str.__str__(value) if isinstance(value, str) else kind(value)

"""What users say of a run becomes the metadata of its log: whose it was, for which project."""

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
"""Names that captures and verdicts use themselves."""


def plain_metadata(said: Metadata) -> dict[str, str | int | float]:
    """Return those of a framework's metadata that logs can have: texts, numbers and booleans."""
    return {
        key: _plain(value)
        for key, value in said.items()
        if isinstance(key, str) and isinstance(value, str | int | float) and not is_own(key)
    }


def in_scope(metadata: Metadata) -> dict[str, Any]:
    """Return metadata that tell runs apart: those with equal content become logs of their own."""
    return {**metadata, SCOPE: sorted(metadata)} if metadata else {}


def may_be_one_run(first: Metadata, second: Metadata) -> bool:
    """Return whether what is said of two parts of a run agrees, as far as both say it."""
    return all(first[key] == value for key, value in second.items() if key in first)


def scope_of(metadata: Metadata) -> dict[str, Any]:
    """Return what was said of the run of a log, see `in_scope`."""
    names = metadata.get(SCOPE)
    return {str(name): metadata.get(str(name)) for name in names} if isinstance(names, list) else {}


def is_own(key: str) -> bool:
    """Whether this package uses a name itself."""
    return key in _OWN or key.startswith("lag_")


def checked_metadata(metadata: Metadata | None) -> dict[str, Any]:
    """Return the metadata that somebody wants logs to have.

    Raises:
        TraceError: A name is no text or is taken; a value cannot be filtered by.
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
    """Return the value without its subclass: enums, and NumPy's numbers."""
    if isinstance(value, bool):
        return value
    kind: Any = next(kind for kind in (str, int, float) if isinstance(value, kind))
    return str.__str__(value) if isinstance(value, str) else kind(value)

"""What a memory is told is checked when it is opened, not when it is first recalled from."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any, get_args

from lag_integrations.errors import SettingsError
from lag_integrations.traces.provenance import UnjudgedDocuments
from lag_integrations.traces.trace import Outcome


def check_number(
    name: str, value: Any, least: float, most: float | None = None, *, whole: bool = False
) -> None:
    """Check that a setting is a number within its range.

    Raises:
        SettingsError: It is none, or outside.
    """
    is_number = isinstance(value, int if whole else Real) and not isinstance(value, bool)
    if not is_number or not least <= value or (most is not None and value > most):
        numbers = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise SettingsError(
            f"{name} is {_shown(value)}; give a {'whole ' if whole else ''}number {numbers}."
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Check that a setting is one of the values of a ``Literal``.

    Raises:
        SettingsError: It is another.
    """
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise SettingsError(f"{name} is {_shown(value)}; it must be one of {known}.")


def check_outcomes(outcomes: Iterable[Any]) -> tuple[Outcome, ...]:
    """Return the outcomes of which logs are recalled.

    Raises:
        SettingsError: There is none, or one of them is no outcome.
    """
    found = tuple(outcomes) if not isinstance(outcomes, str) else (outcomes,)
    if not found:
        raise SettingsError("outcomes is empty, so that nothing would be recalled; name some.")
    for outcome in found:
        check_choice("An outcome", outcome, Outcome)
    return found


def check_settings(
    *,
    k: Any,
    min_relevance: Any,
    min_score: Any,
    diversity: Any,
    hot_bytes: Any,
    max_pending: Any,
    unjudged_documents: Any,
    untrusted_tools: Any,
    screen: Any,
    redact: Any,
) -> None:
    """Check the settings of a memory; see `KVLogMemory`.

    Raises:
        SettingsError: One of them is not valid.
    """
    check_number("k", k, 0, whole=True)
    check_number("min_relevance", min_relevance, 0, 1)
    if min_score is not None:
        check_number("min_score", min_score, -1, 1)
    check_number("diversity", diversity, 0, 1)
    check_number("hot_bytes", hot_bytes, 0, whole=True)
    check_number("max_pending", max_pending, 1, whole=True)
    check_choice("unjudged_documents", unjudged_documents, UnjudgedDocuments)
    if isinstance(untrusted_tools, str) or not all(
        isinstance(name, str) for name in untrusted_tools
    ):
        raise SettingsError(
            f"untrusted_tools is {_shown(untrusted_tools)}; give a list of names, as ['browse*']."
        )
    for name, function in (("screen", screen), ("redact", redact)):
        if function is not None and not callable(function):
            raise SettingsError(f"{name} is {_shown(function)}; give a function of a trace.")


def _shown(value: Any) -> str:
    return repr(value)[:80]

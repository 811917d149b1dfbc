"""Metadata of traces that only this package sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lag_integrations.errors import TraceError

PLACE = "lag_place"
"""Key of the name under which a trace is stored as an item, as of a LangGraph store. Traces with
equal content in two places are two logs."""
SCOPE = "lag_scope"
"""Key of the names of metadata that tell whose run it was, and of what kind. Traces with equal
content that differ in these metadata are two logs."""
UNJUDGED = {"lag_unjudged": True}
"""Marks a run whose outcome its capture inferred: nobody judged it."""
JUDGED = {"lag_judged": True}
"""Marks a run whose success or failure somebody judged, which counts for the logs it was given."""
IMPORTED = {"lag_imported": True}
"""Marks a log from an archive that nobody vouched for."""
NOT_RECALLED = {"lag_recall": False}
"""Marks a trace that is kept, but never recalled, whatever its outcome."""
OUTDATED = {"lag_outdated": True}
"""Marks a log whose sources were said to have changed, until a new run confirms it."""
QUARANTINED = "lag_quarantine"
"""Key of the reason why a screen had a log never recalled."""
VERDICT = "verdict"
"""Key of a person's verdict on a log: the outcome, and of which run."""
LESSON = {"lag_lesson": True}
"""Marks a lesson: a log that was distilled from those of several runs."""
LESSON_OF = "lag_lesson_of"
"""Key of the ids of the logs that a lesson was made of, or was tried to be made of."""
LESSON_REFUSED = "lag_lesson_refused"
"""Key of the reason why no lesson came of such logs; it keeps them from being tried again."""

_PREFIX = "lag_"
_ALLOWED = {SCOPE, *UNJUDGED, *JUDGED}
"""Reserved keys that a user's trace may have: they restrict its recall, or say what adding it with
its outcome says anyway."""
_RESTRICTING = {SCOPE, *UNJUDGED, *IMPORTED, *NOT_RECALLED, *OUTDATED, QUARANTINED}
"""Reserved keys that only restrict the recall of a log."""


def is_marked(metadata: Mapping[str, Any], mark: Mapping[str, bool]) -> bool:
    """Return whether metadata contain a mark, such as `IMPORTED`."""
    return all(metadata.get(key) is value for key, value in mark.items())


def lesson_sources(metadata: Mapping[str, Any]) -> list[str]:
    """Return the ids of the logs that a lesson was made of; an empty list for what is none."""
    found = metadata.get(LESSON_OF)
    return [str(key) for key in found] if isinstance(found, list) else []


def without(metadata: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return metadata without some keys."""
    return {key: value for key, value in metadata.items() if key not in keys}


def refuse_reserved(metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that only this package sets.

    Raises:
        TraceError: There are such keys.
    """
    found = [key for key in metadata if is_reserved(key) and key not in _ALLOWED]
    if found:
        raise TraceError(
            f"A trace has the metadata {', '.join(found)[:200]}, which only a memory itself sets "
            f"({VERDICT}, lag_…). Remove them, or carry logs from store to store by "
            "memory.export_to and import_from (`kvlog export` and `kvlog import`)."
        )


def restricting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without reserved keys, except those that only restrict recall."""
    return {
        key: value for key, value in metadata.items() if not is_reserved(key) or key in _RESTRICTING
    }


def is_reserved(key: str) -> bool:
    """Return whether only this package sets a key."""
    return key == VERDICT or key.startswith(_PREFIX)

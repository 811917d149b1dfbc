"""Merging of two captures with the same content: which outcome and metadata are kept."""

from __future__ import annotations

from collections.abc import Collection

from lag_integrations.traces.reserved_metadata import JUDGED, UNJUDGED, VERDICT, is_marked, without
from lag_integrations.traces.trace import Outcome, Trace

OUTCOME_CERTAINTY: dict[Outcome, int] = {"incomplete": 0, "unknown": 1, "success": 2, "failure": 2}
"""How certain an outcome is. The more certain of two is kept."""


def is_judged(trace: Trace) -> bool:
    """Return whether somebody judged the outcome of a run."""
    return trace.outcome in ("success", "failure") and not is_marked(trace.metadata, UNJUDGED)


def merge_recapture(trace: Trace, known: Trace, keep: Collection[str]) -> Trace:
    """Return a new capture, with the outcome and metadata that are kept of the known one.

    Args:
        trace: The new capture.
        known: The stored one.
        keep: Keys of metadata that the new capture takes from the stored one.
    """
    kept = {key: known.metadata[key] for key in keep if key in known.metadata}
    outcome, helped_by = trace.outcome, trace.helped_by
    metadata = {**trace.metadata, **kept}
    if VERDICT in known.metadata or _certainty(trace) < _certainty(known):
        # Whatever was said of the known run, was said of the logs that it was given.
        outcome, helped_by = known.outcome, known.helped_by
        metadata = without(metadata, *UNJUDGED, *JUDGED)
        for mark in (UNJUDGED, JUDGED):
            if is_marked(known.metadata, mark):
                metadata |= mark
    changes = {"outcome": outcome, "metadata": metadata, "helped_by": helped_by}
    return trace.model_copy(update=changes)


def merge_import(known: Trace, imported: Trace) -> Trace | None:
    """Return a stored trace with the outcome of an imported one; None if it says no more."""
    if VERDICT in known.metadata or _certainty(imported) <= _certainty(known):
        return None
    taken = {k: v for k, v in imported.metadata.items() if k in (VERDICT, *UNJUDGED, *JUDGED)}
    metadata = {**without(known.metadata, *UNJUDGED, *JUDGED), **taken}
    return known.model_copy(update={"outcome": imported.outcome, "metadata": metadata})


def _certainty(trace: Trace) -> int:
    # What a judge or a person said of a run is more certain than what its capture inferred.
    judged = is_judged(trace) + is_marked(trace.metadata, JUDGED)
    return OUTCOME_CERTAINTY[trace.outcome] + judged

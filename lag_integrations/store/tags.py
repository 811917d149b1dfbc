"""Tags of logs: the rows of the ledger by which filters, runs and owners find logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from sqlalchemy import ColumnElement, and_

from lag_integrations.store.capture_merge import is_judged
from lag_integrations.store.schema import tags
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.provenance import MessageSource, is_untrusted
from lag_integrations.traces.reserved_metadata import JUDGED, is_marked
from lag_integrations.traces.sources import SOURCES, names_in
from lag_integrations.traces.trace import Trace

Scalar = str | bool | int | float

RUN = "$run"
"""Key of the ids of a log's runs; filters cannot ask for it."""
RECALLED = "$recalled"
"""Key of the ids of the logs that were recalled into a run which somebody judged."""
SOURCE = "lag_source"
"""Key of a log's least trusted source; no metadata of a trace."""
OWN = "$own"
"""Key of the tags of a log's owner, if nobody else may recall the log."""
BOOLEAN = "\ufffe"
"""First character of the text of a boolean, and of no other: numbers would equal 0 or 1."""
_MAX_KEY = 128
_MAX_RECALLED = 100
_MAX_TEXT = 500
"""Characters: a row of an index is limited (PostgreSQL: 2,704 bytes)."""


def log_tags(log_id: str, trace: Trace, source: MessageSource) -> list[dict[str, Any]]:
    """Return the tags of a log, except those of its runs.

    Args:
        log_id: The log.
        trace: Its trace.
        source: Its least trusted source.
    """
    rows = [*metadata_tags(log_id, trace.metadata), _row(log_id, SOURCE, 0, text=str(source))]
    if is_untrusted(source) and not is_judged(trace):
        owner = Owner.of(trace.metadata)
        rows += [_row(log_id, OWN, place, text=tag) for place, tag in enumerate(owner.tags)]
    if is_marked(trace.metadata, JUDGED):
        given = enumerate(dict.fromkeys(trace.helped_by[:_MAX_RECALLED]))
        rows += [_row(log_id, RECALLED, place, text=_run_text(one)) for place, one in given]
    return rows


def metadata_tags(log_id: str, metadata: Mapping[str, JsonValue]) -> list[dict[str, Any]]:
    """Return the tags of a trace's metadata: scalars, and lists of scalars.

    Of a run's sources, ids and documents become tags. Texts of more than 500 characters, keys of
    more than 128 or with a leading "$", and other nested values do not.
    """
    rows = []
    places: Counter[str] = Counter()
    for key, value in metadata.items():
        if len(key) > _MAX_KEY or key.startswith("$") or key == SOURCE:
            continue
        items = value if isinstance(value, list) else [value]
        name = plain(key)  # several keys may have the same
        for item in names_in(items) if key == SOURCES else items:
            columns = encode_scalar(item) if isinstance(item, Scalar) else None
            if columns is not None and len(columns[0] or "") <= _MAX_TEXT:
                text, number = columns
                rows.append(_row(log_id, name, places[name], text=text, number=number))
                places[name] += 1
    return rows


def run_tag(log_id: str, run_id: str, position: int) -> dict[str, Any]:
    """Return the tag by which a log is found from one of its runs."""
    return _row(log_id, RUN, position, text=_run_text(run_id))


def is_run(run_id: str) -> ColumnElement[bool]:
    """Return a condition on ``tags``: those that `run_tag` returned for a run."""
    return and_(tags.c.key == RUN, tags.c.text == _run_text(run_id))


def _run_text(run_id: str) -> str:
    return plain(run_id)[:_MAX_TEXT]


def _row(
    log_id: str, key: str, position: int, *, text: str | None, number: float | None = None
) -> dict[str, Any]:
    return {"log_id": log_id, "key": key, "position": position, "text": text, "number": number}


def encode_scalar(value: Scalar) -> tuple[str | None, float | None] | None:
    """Return the text and the number of a tag; None if the value is too large to be compared."""
    if isinstance(value, bool):
        return f"{BOOLEAN}{value}".lower(), None
    if isinstance(value, str):
        return plain(value), None
    try:
        return None, float(value)
    except OverflowError:
        return None


def plain(text: str) -> str:
    """Return a text without what databases do not take.

    PostgreSQL takes no NUL in texts, and no database takes halves of a UTF-16 pair.
    """
    return (
        text.replace("\0", "\ufffd")
        .replace(BOOLEAN, "\ufffd")
        .encode("utf-16", "surrogatepass")
        .decode("utf-16", "replace")
    )

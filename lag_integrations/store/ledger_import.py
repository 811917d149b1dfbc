"""Importing logs of another store into the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

from sqlalchemy import Connection, select, update

from lag_integrations.errors import TraceRefusedError
from lag_integrations.store.capture_merge import merge_import
from lag_integrations.store.chunks import chunks
from lag_integrations.store.database import Database
from lag_integrations.store.ledger import FIRST_COUNTERS, Ledger, content_columns
from lag_integrations.store.ledger_reader import STORED_SOURCE
from lag_integrations.store.lesson_links import lessons_of
from lag_integrations.store.log_id import log_id
from lag_integrations.store.log_info import COUNTERS, ExportedLog
from lag_integrations.store.schema import logs
from lag_integrations.traces.provenance import MessageSource, least_trusted
from lag_integrations.traces.reserved_metadata import (
    IMPORTED,
    UNJUDGED,
    lesson_sources,
    restricting,
    without,
)
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)


def import_logs(
    database: Database, ledger: Ledger, found: Sequence[ExportedLog], *, trusted: bool
) -> int:
    """Record logs of another store with the counters that they had there.

    Logs that exist here stay, with the higher counters of both, the more certain outcome, and the
    other store's trace if the one here is damaged. A second call changes nothing. Logs that the
    gate refuses are left out. A log gets the less trusted of its source there and the one found
    here.

    Args:
        database: The ledger's database.
        ledger: The ledger.
        found: The logs.
        trusted: Whether somebody vouches for them. Else they are marked as imported and are of
            no known run, and their judgements, counters and reserved metadata are dropped, except
            those that restrict recall.

    Returns:
        The number of new logs.
    """
    new = 0
    for chunk in chunks(found):
        passed = []
        for trace, counters, source in chunk:
            if not trusted:
                # A run that was here must not be found, nor judged, as a log that claims to be it.
                metadata = without(restricting(trace.metadata), "earlier_runs")
                marks = {**metadata, **IMPORTED, **UNJUDGED}
                trace = trace.model_copy(update={"id": uuid4().hex, "metadata": marks})
                counters = {**FIRST_COUNTERS, "captured_at": counters["captured_at"]}
            try:
                trace = ledger.gate(trace)
            except TraceRefusedError:
                logger.info("A log of another store was left out.")
                continue
            here = ledger.find_source(trace)
            passed.append((trace, counters, least_trusted([here, source or here])))
        with database.write() as connection:
            for log in passed:
                new += _import_log(connection, ledger, *log, trusted=trusted)
    return new


def _import_log(
    connection: Connection,
    ledger: Ledger,
    trace: Trace,
    counters: Mapping[str, float],
    source: MessageSource,
    *,
    trusted: bool,
) -> bool:
    """Record a log; return whether it is new.

    A lesson is left out whose sources are not all here, or have a lesson already.
    """
    key = log_id(ledger.namespace, trace)
    if made_of := lesson_sources(trace.metadata):
        here = ledger.lock_ids(connection, made_of)  # none is deleted meanwhile
        if len(here) < len(made_of) or set(lessons_of(connection, made_of)) - {key}:
            return False
    columns = (logs.c[name] for name in COUNTERS)
    row = connection.execute(
        select(logs.c.trace, STORED_SOURCE, *columns).where(ledger.mine_by_id, logs.c.id == key)
    ).one_or_none()
    if row is None:
        content = content_columns(trace)
        ledger.insert(connection, key, trace, content, source, counters["captured_at"])
        values = {**counters, "used_at": time.time()}
    else:
        known = ledger.parse_intact(key, row.trace)
        source = least_trusted([source, row.source or source])
        if known is None:
            ledger.replace(connection, key, trace, source)
        elif not trusted:
            return False
        elif (merged := merge_import(known, trace)) is not None:
            ledger.replace(connection, key, merged, source)
        values = {name: max(getattr(row, name), counters[name]) for name in COUNTERS}
    connection.execute(update(logs).where(logs.c.id == key).values(values))
    return row is None

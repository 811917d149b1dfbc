"""Statistics of a store, for people and monitoring."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import func, select

from lag_integrations.store.database import Database
from lag_integrations.store.log_info import state_of
from lag_integrations.store.migrations import HEAD
from lag_integrations.store.schema import (
    embeddings,
    failures,
    logs,
    models,
    removals,
    settings,
)
from lag_integrations.store.schema import segments as table


@dataclass(frozen=True)
class SegmentStatistics:
    """The segments of one kind.

    Attributes:
        model: Class of the model that encoded them, if known.
        fingerprint: Fingerprint of that model.
        selection: Which tokens they keep.
        codec: How they are stored.
        stored: Number of stored segments.
        evicted: Number of segments that a budget evicted; they are encoded again when recalled.
        tokens: Tokens of those that are stored.
        bytes: Bytes of those that are stored.
    """

    model: str | None
    fingerprint: str
    selection: str
    codec: str
    stored: int
    evicted: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Statistics:
    """What one namespace contains.

    Attributes:
        namespace: Its name.
        logs: Number of logs.
        outcomes: Number of logs by outcome.
        states: Number of logs by state: ``captured``, ``embedded`` (can be recalled), ``indexed``
            (also in Chroma).
        trace_bytes: Bytes of all traces.
        segment_bytes: Bytes of all segments.
        segments: Segments by model, selection and codec.
        removals: Number of queued removals of files and index entries.
        failures: Number of failed logs, by task.
    """

    namespace: str
    logs: int
    outcomes: dict[str, int]
    states: dict[str, int]
    trace_bytes: int
    segment_bytes: int
    segments: list[SegmentStatistics]
    removals: int
    failures: dict[str, int]


@dataclass(frozen=True)
class StoreInfo:
    """What all namespaces of a store have in common.

    Attributes:
        schema: Schema version of the ledger.
        embedder: Name of its embedder; None if nothing was embedded yet.
        dimension: Dimension of its embeddings.
    """

    schema: str
    embedder: str | None
    dimension: int | None


def store_info(database: Database) -> StoreInfo:
    """Return what all namespaces have in common."""
    with database.read() as connection:
        recorded = connection.execute(
            select(settings.c.value).where(settings.c.key == "embedder")
        ).scalar_one_or_none()
    embedder = json.loads(recorded) if recorded else {}
    return StoreInfo(HEAD, embedder.get("name"), embedder.get("dimension"))


def namespaces_of(database: Database) -> list[str]:
    """Return the names of namespaces that have logs."""
    with database.read() as connection:
        rows = connection.execute(select(logs.c.namespace).distinct().order_by(logs.c.namespace))
        return [row.namespace for row in rows]


def statistics_of(database: Database, namespace: str) -> Statistics:
    """Count what a namespace contains."""
    mine = logs.c.namespace == namespace
    stored = table.c.file.is_not(None)
    kind = (table.c.fingerprint, table.c.selection, table.c.codec)
    number = func.count()
    with database.read() as connection:
        by_outcome = connection.execute(
            select(logs.c.outcome, number, func.sum(logs.c.bytes))
            .where(mine)
            .group_by(logs.c.outcome)
            .order_by(logs.c.outcome)
        ).all()
        waiting = (
            select(embeddings.c.log_id)
            .where(embeddings.c.log_id == logs.c.id, embeddings.c.indexed_in.is_(None))
            .exists()
        )
        by_state = connection.execute(
            select(logs.c.embedded, waiting.label("waiting"), number)
            .where(mine)
            .group_by(logs.c.embedded, waiting)
        ).all()
        by_kind = connection.execute(
            select(
                models.c.parts,
                *kind,
                func.count(table.c.file),
                number,
                func.coalesce(func.sum(table.c.tokens).filter(stored), 0),
                func.coalesce(func.sum(table.c.bytes).filter(stored), 0),
            )
            .select_from(table)
            .join(logs, logs.c.id == table.c.log_id)
            .outerjoin(models, models.c.fingerprint == table.c.fingerprint)
            .where(mine)
            .group_by(models.c.parts, *kind)
            .order_by(*kind)
        ).all()
        to_remove = connection.execute(
            select(number).select_from(removals).where(removals.c.namespace == namespace)
        ).scalar_one()
        by_task = connection.execute(
            select(failures.c.task, number)
            .join(logs, logs.c.id == failures.c.log_id)
            .where(mine)
            .group_by(failures.c.task)
            .order_by(failures.c.task)
        ).all()
    states = {"captured": 0, "embedded": 0, "indexed": 0}
    for embedded, has_waiting, count in by_state:
        states[state_of(embedded=embedded, waiting=has_waiting)] += count
    kinds = [
        SegmentStatistics(
            model=json.loads(parts).get("model") if parts else None,
            fingerprint=fingerprint,
            selection=selection,
            codec=codec,
            stored=files,
            evicted=rows - files,
            tokens=int(tokens),
            bytes=int(size),
        )
        for parts, fingerprint, selection, codec, files, rows, tokens, size in by_kind
    ]
    return Statistics(
        namespace=namespace,
        logs=sum(states.values()),
        outcomes={outcome: count for outcome, count, _ in by_outcome},
        states=states,
        trace_bytes=sum(int(size) for _, _, size in by_outcome),
        segment_bytes=sum(one.bytes for one in kinds),
        segments=kinds,
        removals=to_remove,
        failures={row[0]: row[1] for row in by_task},
    )

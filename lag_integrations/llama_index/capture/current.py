"""What our own classes ask about the run that goes on where they are called."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llama_index_instrumentation.span import active_span_id

from lag_integrations.capture.judges import is_uncaptured
from lag_integrations.capture.log_exceptions import log_exceptions
from lag_integrations.capture.run_metadata import Metadata
from lag_integrations.llama_index.capture.handlers import tracker
from lag_integrations.llama_index.capture.run import Receiver, Run
from lag_integrations.llama_index.capture.spans import Span
from lag_integrations.llama_index.capture.tags import current_tags
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import Source

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

logger = logging.getLogger(__name__)

_runs = tracker.runs


def open_run(
    memory: LogMemory,
    *,
    owner: object = None,
    thread: str | None = None,
    metadata: Metadata | None = None,
    task: str | None = None,
) -> str | None:
    """Capture the run that goes on, from within it.

    Args:
        memory: Where its trace goes, too.
        owner: The run is the outermost call of it that leads here without leaving it; by default
            the nearest run of a workflow or agent, or turn of a chat engine.
        thread: The conversation that it belongs to.
        metadata: Metadata of its log (see `checked_metadata`).
        task: What it was asked, unless its arguments say so.

    Returns:
        Its id; None where there is no such run, or LlamaIndex was not instrumented when it began.
    """
    try:
        with _runs.lock:
            span = _span_to_open(owner)
            if span is None:
                return None
            run = _runs.open(span, memory, Receiver(None, metadata or {}))
            run.thread = run.thread or thread
            run.task = run.task or task
            return run.id
    except Exception as error:
        logger.warning("A run is not captured (%s).", type(error).__name__)
        return None


@log_exceptions
def note_recalled(texts: Mapping[str, str]) -> None:
    """Note that texts were recalled into the run that goes on, so that it does not learn them.

    Args:
        texts: The ids of their logs, by text.
    """
    with _runs.lock:
        if (run := _run()) is not None:
            run.add_recalled(texts)


def retrieved() -> list[Source]:
    """Return what was retrieved in the call that goes on, and in all those around it."""
    with _runs.lock:
        span = _span()
        outermost = None if span is None else list(span.upwards())[-1]
        return [] if outermost is None else list(outermost.retrieved)


def current_run() -> str | None:
    """Return the id of the run that goes on, if it is captured."""
    with _runs.lock:
        run = _run()
        return None if run is None else run.id


def current_owner(metadata: Metadata | None = None, thread: str | None = None) -> Owner:
    """Return whose run goes on, by what becomes the metadata of its log.

    Args:
        metadata: Further metadata, which win.
        thread: Its conversation, where that is known.
    """
    merged = {**current_tags(), **_run_metadata(), **(metadata or {})}
    return Owner.of(merged if thread is None else {**merged, "thread_id": thread})


def captured_by() -> LogMemory | None:
    """Return the memory that captures the run that goes on, if one does."""
    with _runs.lock:
        run = _run()
        return None if run is None else next(iter(run.receivers), None)


def is_choosing() -> bool:
    """Return whether the run selects, ranks, rewrites or retrieves here, rather than answers."""
    with _runs.lock:
        span = _span()
        for each in () if span is None else span.upwards():
            if each.chooses:
                return True
            if each.run is not None:
                return False
        return False


def _span() -> Span | None:
    return _runs.spans.get(active_span_id.get())


def _run() -> Run | None:
    return _runs.at(active_span_id.get())


def _span_to_open(owner: object) -> Span | None:
    current = _span()
    if current is None or is_uncaptured() or any(each.muted for each in current.upwards()):
        return None
    for each in current.upwards():
        if each.is_conversation if owner is None else each.instance is owner:
            return each.outermost_of(each.instance)
    return None


def _run_metadata() -> dict[str, Any]:
    """Return the metadata of the innermost run that goes on here, as its log will have it."""
    with _runs.lock:
        run = _run()
        if run is None:
            return {}
        metadata = dict(run.metadata)
        for receiver in run.receivers.values():
            metadata |= receiver.metadata
        return metadata if run.thread is None else {**metadata, "thread_id": run.thread}

"""How a log is shown, to people and to programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lag_integrations.cli.output import human_size, iso_time
from lag_integrations.traces.message import Message
from lag_integrations.traces.reserved_metadata import LESSON, is_marked

if TYPE_CHECKING:
    from lag_integrations.store.log_info import LogInfo
    from lag_integrations.store.utility import RunOutcomes
    from lag_integrations.traces.trace import Trace


def of_trace(trace: Trace) -> dict[str, Any]:
    """Return what a list says of a trace."""
    return {
        "kind": kind(trace),
        "outcome": trace.outcome,
        "task": trace.task,
        "metadata": trace.metadata,
    }


def kind(trace: Trace) -> str:
    """Return whether a log is of a run or a lesson."""
    return "lesson" if is_marked(trace.metadata, LESSON) else "run"


def as_dict(info: LogInfo) -> dict[str, Any]:
    """Return what the ledger says of a log, without the messages of its trace."""
    fields = {name: value for name, value in vars(info).items() if name != "trace"}
    times = {"captured_at": iso_time(info.captured_at, "microseconds")}
    return fields | times | of_trace(info.trace)


def contains(trace: Trace, text: str) -> bool:
    """Return whether a text occurs in the task, in a message or in a call, in upper or lower case.

    Args:
        trace: Where to look.
        text: What to look for, in lower case (``casefold``).
    """
    messages = (*trace.earlier, *trace.messages)
    calls = (call for message in messages for call in message.tool_calls)
    parts = (trace.task, *(message.text for message in messages), *(call.text for call in calls))
    return any(text in part.casefold() for part in parts)


def readable(info: LogInfo, runs: RunOutcomes | None = None) -> Iterator[str]:
    """Return a log as lines for people.

    Args:
        info: The log.
        runs: How the judged runs ended into which it was recalled, if there are any.
    """
    trace = info.trace
    yield f"log       {info.id}"
    yield f"kind      {kind(trace)}"
    yield f"captured  {iso_time(info.captured_at)}, {info.times_seen} times"
    yield f"state     {info.state}, {info.segments} segments, {human_size(info.bytes)}"
    yield (
        f"used      recalled {info.times_recalled}, helped {info.times_helped}, "
        f"harmed {info.times_harmed} times"
    )
    if runs is not None:
        yield f"runs      {runs.succeeded} succeeded and {runs.failed} failed with it"
    yield f"outcome   {trace.outcome}"
    if info.source is not None:
        yield f"source    {info.source}, the least trusted that it follows"
    yield f"task      {trace.task}"
    for name, value in trace.metadata.items():
        yield f"metadata  {name} = {value}"
    if trace.helped_by:
        yield f"recalled into it: {', '.join(trace.helped_by)}"
    note = "of a source" if kind(trace) == "lesson" else "before the run"
    for message in trace.earlier:
        yield ""
        yield from _message(message, note)
    for message in trace.messages:
        yield ""
        yield from _message(message)


def _message(message: Message, note: str | None = None) -> Iterator[str]:
    notes = [note, message.name, "failed" if message.status == "error" else None]
    yield " ".join(["---", message.role, *(f"({note})" for note in notes if note), "---"])
    if message.text:
        yield message.text
    if not isinstance(message.content, str):
        others = [
            str(block.get("type", "?"))
            for block in message.content
            if isinstance(block, dict) and not isinstance(block.get("text"), str)
        ]
        if others:
            yield f"[not shown: {', '.join(others)}]"
    for call in message.tool_calls:
        yield f"-> {call.text}"

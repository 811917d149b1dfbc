"""A lesson as a log: what stands in its trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from lag_integrations.memory.lessons.prompt import Excerpt, Reply, cut
from lag_integrations.traces.message import Message
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.reserved_metadata import (
    LESSON,
    LESSON_OF,
    LESSON_REFUSED,
    SCOPE,
    is_reserved,
)
from lag_integrations.traces.search_keys import task_identity
from lag_integrations.traces.sources import SOURCES
from lag_integrations.traces.trace import Trace

_NAMED = 3
"""Tasks that a lesson names."""
_NAMED_BYTES = 200
_OF_ONE_RUN = ("thread_id", "earlier_runs", SOURCES)
"""Metadata that say of one run what cannot be said of several."""


def lesson_trace(
    sources: Mapping[str, Trace], shown: Sequence[Excerpt], reply: Reply, owner: Owner
) -> Trace:
    """Return a lesson, or the record that none came of these runs.

    What it was made of stands before it, as earlier turns: so its segment is encoded in their
    context, and takes no more room.

    Args:
        sources: The runs, by id of their logs.
        shown: What was shown of them.
        reply: What the model made of it.
        owner: Whose all of them are.
    """
    metadata = _common([trace.metadata for trace in sources.values()])
    if Owner.of(metadata).user != owner.user:  # named otherwise by each run
        metadata["user_id"] = owner.user
    if owner.thread is not None:
        metadata["thread_id"] = owner.thread
    # An equal lesson of other runs is another log.
    metadata |= {**LESSON, LESSON_OF: list(sources), SCOPE: [LESSON_OF]}
    if documents := _documents(sources.values()):
        metadata[SOURCES] = documents
    task = _task(list(sources.values()))
    messages = [Message(role="user", content=task)]
    if not reply.lesson:
        metadata[LESSON_REFUSED] = reply.refused
        return Trace(messages=tuple(messages), task=task, outcome="failure", metadata=metadata)
    messages.append(Message(role="assistant", content=reply.lesson))
    earlier = tuple(turn for run in shown for turn in run.turns)
    return Trace(messages=tuple(messages), task=task, earlier=earlier, metadata=metadata)


def _task(traces: Sequence[Trace]) -> str:
    different = {task_identity(trace): trace.task for trace in reversed(traces)}
    named = [cut(task, _NAMED_BYTES) for task in different.values()][:_NAMED]
    return "\n- ".join(["What is to be known for tasks like these?", *named])


def _common(found: Sequence[Mapping[str, JsonValue]]) -> dict[str, JsonValue]:
    """Return the metadata that are equal in all."""
    first, *others = found
    return {
        key: value
        for key, value in first.items()
        if not is_reserved(key)
        and key not in _OF_ONE_RUN
        and all(key in one and one[key] == value for one in others)
    }


def _documents(traces: Iterable[Trace]) -> list[JsonValue]:
    """Return the documents that any of the runs was shown."""
    found: list[JsonValue] = []
    for trace in traces:
        documents = trace.metadata.get(SOURCES)
        found += (
            [one for one in documents if one not in found] if isinstance(documents, list) else []
        )
    return found

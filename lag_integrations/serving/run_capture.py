"""The run that a call ends, as a trace: a conversation is all that a server is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from lag_integrations.capture.run_metadata import in_scope, plain_metadata
from lag_integrations.serving.completion import Completion
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message
from lag_integrations.traces.message_conversion import as_message
from lag_integrations.traces.owner import Owner
from lag_integrations.traces.sources import SOURCES, sources_in
from lag_integrations.traces.trace import Outcome, Trace

CANCELLED = "cancelled"
"""Why an answer ended that nobody read to its end."""
_SOURCE = "gateway"
_WHOLE = ("stop", "tool_calls")


def trace_of(
    messages: Sequence[Message],
    completion: Completion,
    finish_reason: str,
    *,
    run_id: str,
    started_at: datetime,
    ended_at: datetime,
    helped_by: Sequence[str] = (),
    owner: Owner,
    metadata: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]] = (),
    error: BaseException | None = None,
) -> Trace | None:
    """Return the run that an answer ends; None if it goes on, or nothing came of it.

    The run is the last turn: from what the user said last, with the system message. It goes on
    where the answer calls tools, since their results come in another request, with all that was
    said before. What came before the turn is kept as `Trace.earlier`.

    Args:
        messages: The conversation.
        completion: The answer, as far as it came.
        finish_reason: Why it ended; ``cancelled`` if nobody read on.
        run_id: Id of the run.
        started_at: When the call came.
        ended_at: When its answer ended.
        helped_by: Ids of the logs that it was given.
        owner: Whose run it is.
        metadata: What the client says of it.
        sources: Documents that the conversation holds, as the client names them.
        error: What went wrong.
    """
    said = bool(completion.text.strip())
    if error is None and completion.calls and not completion.unreadable:
        return None
    if not said and not completion.unreadable:
        return None
    begin = _begin_of_turn(messages)
    steps = [message for message in messages[:begin] if message.role == "system"]
    steps += [*messages[begin:], as_message(completion.message)]
    told: dict[str, Any] = {**in_scope(plain_metadata(metadata)), "source": _SOURCE}
    if owner.thread is not None:
        told["thread_id"] = owner.thread
    if error is not None:
        told["error"] = type(error).__name__
    elif finish_reason == CANCELLED:
        told["abandoned"] = True
    if sources:
        told[SOURCES] = [
            source.to_json() for source in sources_in({SOURCES: [dict(one) for one in sources]})
        ]
    return Trace.from_messages(
        steps,
        task=next((one.text for one in reversed(messages) if one.role == "user"), None),
        earlier=earlier_turns(messages[:begin]),
        outcome=_outcome(completion, finish_reason, error),
        id=run_id,
        started_at=started_at,
        ended_at=ended_at,
        helped_by=tuple(helped_by),
        metadata=told,
    )


def _begin_of_turn(messages: Sequence[Message]) -> int:
    """Return where the last turn begins: behind the last answer before the user's last message."""
    users = (place for place, message in enumerate(messages) if message.role == "user")
    place = max(users, default=0)
    while place and messages[place - 1].role not in ("assistant", "tool"):
        place -= 1
    return place


def _outcome(completion: Completion, finish_reason: str, error: BaseException | None) -> Outcome:
    if error is not None or completion.unreadable:
        return "failure"
    return "success" if finish_reason in _WHOLE else "incomplete"

"""Logs made of the right calls of a task: one a turn, with the results that the calls have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lag_integrations.evaluation.tool_tasks.simulator import Simulator
from lag_integrations.evaluation.tool_tasks.tasks import Task
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.trace import Trace


def gold_traces(task: Task) -> Iterator[Trace]:
    """Yield the traces of an agent that knew the right calls, turn by turn.

    It makes one call at a time, and says at the end what it did. A turn that needs no call is no
    log.
    """
    simulator = Simulator(task)
    said: list[Message] = []
    for turn, (asked, calls) in enumerate(zip(task.asked, task.gold, strict=True)):
        user = Message(role="user", content=asked)
        last = Message(role="assistant", content=_report(calls))
        steps = [
            message
            for number, call in enumerate(calls)
            for message in _step(simulator, call, f"call_{number}")
        ]
        if steps:
            yield Trace.from_messages(
                [user, *steps, last],
                task=asked,
                outcome="success",
                earlier=earlier_turns(said),
                metadata={"question_id": task.turn_id(turn), "made_from": "gold"},
            )
        said += [user, last]


def _step(simulator: Simulator, call: ToolCall, id: str) -> Iterator[Message]:
    result = simulator.call(call.name, call.args)
    asked = call.model_copy(update={"id": id})
    yield Message(role="assistant", tool_calls=(asked,))
    yield Message(
        role="tool",
        content=result.text,
        tool_call_id=id,
        name=call.name,
        status="error" if result.failed else "success",
    )


def _report(calls: Sequence[ToolCall]) -> str:
    if not calls:
        return "There was nothing to do."
    return f"Done: {', '.join(call.text for call in calls)}."

"""The order of tool results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from lag_integrations.traces.message import Message


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Put tool results in the order of the calls they answer.

    Tools that run in parallel end in any order. Most chat templates show no ids, so a model tells
    by its position which call a result answers.

    Only consecutive results change places. Results of the latest calls come first. Results of
    earlier messages' calls follow, as of an agent whose tool is an agent. Results that answer no
    call before them come last. A result without an id keeps its place.
    """
    places: dict[str, tuple[int, int]] = {}
    ordered: list[Message] = []
    for turn, (role, group) in enumerate(groupby(messages, key=lambda message: message.role)):
        steps = list(group)
        if role == "tool":
            named = [step for step in steps if step.tool_call_id]
            named.sort(key=lambda step: places.get(step.tool_call_id or "", (1, 0)))
            following = iter(named)
            steps = [next(following) if step.tool_call_id else step for step in steps]
        else:
            ids = dict.fromkeys(call.id for step in steps for call in step.tool_calls if call.id)
            places.update((id, (-turn, number)) for number, id in enumerate(ids))
        ordered += steps
    return ordered

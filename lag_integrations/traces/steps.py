"""Steps of a run: what the agent said or called, each with what came of it."""

from __future__ import annotations

from itertools import pairwise, starmap

from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_MARK = "#"
_MOST_DIGITS = 9


def steps_of(trace: Trace) -> tuple[range, ...]:
    """Return which messages each step is made of.

    A step begins with a message of the agent, and holds what comes before the next one: results of
    its calls, or what the user said to it. What stands before the first is in none.
    """
    starts = [n for n, message in enumerate(trace.messages) if message.role == "assistant"]
    return tuple(starmap(range, pairwise([*starts, len(trace.messages)])))


def answer_step(trace: Trace) -> int:
    """Return the step of the last response: the last in which the agent said something."""
    said = [trace.messages[messages.start].text.strip() for messages in steps_of(trace)]
    return max((step for step, text in enumerate(said) if text), default=max(0, len(said) - 1))


def step_reference(log_id: str, step: int) -> str:
    """Return by what a step of a log is asked for, as a log is by its id."""
    return f"{log_id}{_MARK}{step}"


def parse_reference(reference: str) -> tuple[str, int | None]:
    """Return the id of a log, and which of its steps is meant, if one is."""
    log_id, mark, step = reference.partition(_MARK)
    if mark and step.isdecimal() and len(step) <= _MOST_DIGITS:
        return log_id, int(step)
    return reference, None


def step_text(trace: Trace, step: int) -> str:
    """Return a step as text: what the agent said, its calls, and what came of them."""
    return "\n".join(filter(None, map(_said, (trace.messages[n] for n in steps_of(trace)[step]))))


def _said(message: Message) -> str:
    calls = (call.text for call in message.tool_calls)
    return "\n".join(filter(None, [message.text.strip(), *calls]))

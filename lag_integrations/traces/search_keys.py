"""Search keys: the texts that are embedded, so that a trace is found by them."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lag_integrations.traces.conversation import follow_up
from lag_integrations.traces.message import Message, ToolCall
from lag_integrations.traces.reserved_metadata import LESSON, is_marked
from lag_integrations.traces.trace import Trace

MAX_KEYS = 16
"""Most keys of a trace. A log's entries in the index are numbered below this."""
_MAX_CHARACTERS = 4_000
"""Of a key: more than usual embedders read."""

KeyKind = Literal["task", "response", "step"]


@dataclass(frozen=True)
class SearchKey:
    """A text by which a trace is found.

    Attributes:
        kind: ``task`` (what was asked, in a conversation after the previous message), ``response``
            (the task with the last response, as in the LAG paper), or ``step`` (an earlier message
            of the agent, with its tool calls).
        text: The text that is embedded.
        step: Which step of the trace fits who searches for it, counted from 0: for ``task`` the
            first, for ``response`` the last; see `traces.steps`.
    """

    kind: KeyKind
    text: str
    step: int = field(default=0, compare=False)


def search_keys(trace: Trace) -> tuple[SearchKey, ...]:
    """Return the keys of a trace: the task, the task with its response, then the steps.

    Instead of steps, a lesson has the tasks of the runs that it was made of: it is found wherever
    one of these is. In one embedding, a long response would drown the task. Equal texts are one
    key. There is always at least one key.
    """
    keys: dict[str, SearchKey] = {}
    for key in _all_keys(trace):
        if key.text:
            keys.setdefault(key.text, key)
        if len(keys) == MAX_KEYS:
            break
    return tuple(keys.values()) or (SearchKey("task", trace.task),)


def response_text(trace: Trace) -> str:
    """Return the task with the last response."""
    return f"{_task(trace)}\n{trace.last_response}"


def task_identity(trace: Trace) -> str:
    """Return a normalised task, equal for traces of the same task; ``""`` if there is none.

    Case, spaces and a full stop or question mark at the end do not count. All else does: "C++" is
    not "C", and "10²" is not "102".
    """
    folded = unicodedata.normalize("NFC", _task(trace)).casefold()
    return " ".join(folded.split()).rstrip(".? ")


def _task(trace: Trace) -> str:
    """Return the task after the previous user message: a follow-up alone says too little.

    What stands before a lesson are other runs, and nothing that it follows.
    """
    if is_marked(trace.metadata, LESSON):
        return trace.task
    said = [message.text for message in trace.earlier if message.role == "user"]
    return follow_up(trace.task, said[-1]) if said else trace.task


def _all_keys(trace: Trace) -> Iterator[SearchKey]:
    yield _key("task", _task(trace))
    number = sum(message.role == "assistant" for message in trace.messages)
    yield _key("response", response_text(trace), max(0, number - 1))
    if is_marked(trace.metadata, LESSON):
        yield from (_key("task", one.text) for one in trace.earlier if one.role == "user")
    said = (message for message in trace.messages if message.role == "assistant")
    for step, message in enumerate(said):
        is_response = message.text == trace.last_response and not message.tool_calls
        if not is_response:
            yield _key("step", _step(message), step)


def _key(kind: KeyKind, text: str, step: int = 0) -> SearchKey:
    return SearchKey(kind, text[:_MAX_CHARACTERS].strip(), step)


def _step(message: Message) -> str:
    """Return the text of a message, and its calls with their arguments."""
    calls = (f"{call.name} {_arguments(call)}" for call in message.tool_calls)
    return "\n".join([message.text.strip(), *calls]).strip()


def _arguments(call: ToolCall) -> str:
    return call.args if isinstance(call.args, str) else json.dumps(call.args, ensure_ascii=False)

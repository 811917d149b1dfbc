"""The texts by which a trace is found: what was asked, how it was answered, what was done."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lag_integrations.traces.queries import follow_up
from lag_integrations.traces.trace import Message, ToolCall, Trace

MAX_KEYS = 16
"""Most keys of a trace. A log's entries in the index are numbered below this."""
_MAX_CHARACTERS = 4_000
"""Of a key: more than any usual embedder reads."""

KeyKind = Literal["task", "response", "step"]


@dataclass(frozen=True)
class SearchKey:
    """A text by which a trace is found.

    Attributes:
        kind: ``task`` (what was asked, in a conversation behind what was said before), ``response``
            (that with the last response: LAG paper), or ``step`` (what the agent said and called on
            its way).
        text: The text that is embedded.
    """

    kind: KeyKind
    text: str


def search_keys(trace: Trace) -> tuple[SearchKey, ...]:
    """Return the keys of a trace: the task, the task with its response, then the steps.

    A long response drowns the task in one embedding, and a request in other words may be near to
    the response alone, so both are keys. Equal texts are one key. There is always at least one.
    """
    keys: dict[str, SearchKey] = {}
    for key in _all_keys(trace):
        if key.text:
            keys.setdefault(key.text, key)
        if len(keys) == MAX_KEYS:
            break
    return tuple(keys.values()) or (SearchKey("task", trace.task),)


def response_text(trace: Trace) -> str:
    """Return the task with the last response, by which a run like this one is found."""
    return f"{_task(trace)}\n{trace.last_response}"


def task_identity(trace: Trace) -> str:
    """Return a text that two traces share if they are of the same task, empty if there is none.

    Case, spaces and a full stop or question mark at the end do not count. All else does, since
    "C++" is not "C", "10²" not "102", and "Is Anna older than Ben" has an order.
    """
    folded = unicodedata.normalize("NFC", _task(trace)).casefold()
    return " ".join(folded.split()).rstrip(".? ")


def _task(trace: Trace) -> str:
    """The task, behind what the user said before it: alone it fits every such conversation."""
    said = [message.text for message in trace.earlier if message.role == "user"]
    return follow_up(trace.task, said[-1]) if said else trace.task


def _all_keys(trace: Trace) -> Iterator[SearchKey]:
    yield _key("task", _task(trace))
    yield _key("response", response_text(trace))
    for message in trace.messages:
        is_response = message.text == trace.last_response and not message.tool_calls
        if message.role == "assistant" and not is_response:
            yield _key("step", _step(message))


def _key(kind: KeyKind, text: str) -> SearchKey:
    return SearchKey(kind, text[:_MAX_CHARACTERS].strip())


def _step(message: Message) -> str:
    """What an agent was about to do: its words, and its calls with their arguments."""
    calls = (f"{call.name} {_arguments(call)}" for call in message.tool_calls)
    return "\n".join([message.text.strip(), *calls]).strip()


def _arguments(call: ToolCall) -> str:
    return call.args if isinstance(call.args, str) else json.dumps(call.args, ensure_ascii=False)

"""Where the messages of a run come from, and how far these sources are trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from lag_integrations.traces.message import Message, Role
from lag_integrations.traces.reserved_metadata import IMPORTED, is_marked
from lag_integrations.traces.sources import SOURCES
from lag_integrations.traces.trace import Trace

MessageSource = Literal["developer", "user", "assistant", "tool", "document", "imported"]
"""Where a message comes from, the most trusted source first."""

UnjudgedDocuments = Literal["own", "any"]
"""Who may recall logs of unjudged runs that read documents: their owner only, or anybody."""

UNTRUSTED_TOOLS = (
    "*arxiv*",
    "*attachment*",
    "*bing*",
    "*browse*",
    "*crawl*",
    "*document*",
    "*download*",
    "*duckduckgo*",
    "*fetch*",
    "*google*",
    "*http*",
    "*inbox*",
    "*mail*",
    "*news*",
    "*page*",
    "*pdf*",
    "*reddit*",
    "*retriev*",
    "*scrape*",
    "*search*",
    "*serp*",
    "*tavily*",
    "*url*",
    "*web*",
    "*wikipedia*",
)
"""Patterns of names of tools that seem to read what others wrote: a heuristic."""

_UNTRUSTED: tuple[MessageSource, ...] = ("document", "imported")
_ORDER = get_args(MessageSource)
_SOURCE_OF_ROLE: dict[Role, MessageSource] = {
    "system": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# How agents of the ReAct kind call tools, and are told their results, in texts.
_ACTION = re.compile(r"^\s*Action:\s*([\w.-]+)", re.MULTILINE)
_OBSERVATION = re.compile(r"^\s*Observation:", re.MULTILINE)
CODE_RESULT = "Result of executing the code given:"
"""How LlamaIndex's ``CodeActAgent`` begins the user message that holds a result."""


def message_sources(
    messages: Sequence[Message], untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS
) -> list[MessageSource]:
    """Return the source of each message.

    Args:
        messages: The messages of a run, in order.
        untrusted_tools: Names of tools, or patterns of `fnmatch`, that read what others wrote.
    """
    return list(_sources(messages, [pattern.lower() for pattern in untrusted_tools]))


def _sources(messages: Sequence[Message], patterns: Sequence[str]) -> Iterator[MessageSource]:
    by_id: dict[str, str] = {}
    called: set[str] = set()
    for message in messages:
        for call in message.tool_calls:
            called.add(call.name)
            if call.id:
                by_id[call.id] = call.name
        if message.role != "tool":
            called.update(_ACTION.findall(message.text))
        if message.role == "user" and message.text.startswith(CODE_RESULT):
            yield "document"  # code may have read anything
            continue
        is_result = message.role == "tool"
        if is_result or (message.role == "user" and _OBSERVATION.search(message.text)):
            name = message.name or by_id.get(message.tool_call_id or "")
            # A result of no known tool may be that of any which was called.
            names = [name] if is_result and name else called
            untrusted = any(
                fnmatchcase(one.lower(), pattern) for one in names for pattern in patterns
            )
            yield "document" if untrusted else "tool"
        else:
            yield _SOURCE_OF_ROLE[message.role]


def response_source(
    trace: Trace, untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS
) -> MessageSource:
    """Return the least trusted source among the messages up to a run's last response.

    Args:
        trace: The run.
        untrusted_tools: See `message_sources`.
    """
    if is_marked(trace.metadata, IMPORTED):
        return "imported"
    if trace.metadata.get(SOURCES):
        return "document"
    said = [place for place, one in enumerate(trace.messages) if one.role == "assistant"]
    end = said[-1] + 1 if said else len(trace.messages)
    return least_trusted(message_sources([*trace.earlier, *trace.messages[:end]], untrusted_tools))


def least_trusted(sources: Sequence[MessageSource]) -> MessageSource:
    """Return the least trusted of several sources."""
    return max(sources, key=_ORDER.index)


def is_untrusted(source: MessageSource) -> bool:
    """Return whether others than the developer and the user may have written the message."""
    return source in _UNTRUSTED

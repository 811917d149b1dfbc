"""The sources of what a run says, by how far they are trusted, and whose run it was."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from lag_integrations.errors import TraceError
from lag_integrations.traces.sources import SOURCES
from lag_integrations.traces.trace import SCOPE, Message, Role, Trace

MessageSource = Literal["developer", "user", "assistant", "tool", "document", "imported"]
"""Where a message comes from, the most trusted first."""

UnjudgedDocuments = Literal["own", "any"]
"""Who is given logs of unjudged runs that read documents: whose runs they were, or everybody."""

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
"""Names of tools that are taken for readers of what others wrote: a heuristic, and no more."""

UNJUDGED = {"lag_unjudged": True}
"""Metadata of a run that ended well, or failed, as far as its capture knows: nobody judged it."""
IMPORTED = {"lag_imported": True}
"""Metadata of a log that came from an archive which nobody vouched for."""
NOT_RECALLED = {"lag_recall": False}
"""Metadata of a trace that is kept, but never recalled, whatever its outcome."""
OUTDATED = {"lag_outdated": True}
"""Metadata of a log whose sources were said to have changed, until a new run confirms it."""
QUARANTINED = "lag_quarantine"
"""Metadata of a log that is never recalled, as its `Screen` said: the reason."""
VERDICT = "verdict"
"""Metadata of a log on which someone gave a verdict: the outcome, and of which run."""

_ALLOWED = {SCOPE, *UNJUDGED}
"""Names that begin as the package's own, but can do no harm: they only restrict."""
_RESTRICTING = {*_ALLOWED, *IMPORTED, *NOT_RECALLED, *OUTDATED, QUARANTINED}
"""Names that only a memory sets, or that do no harm, and by which a log is recalled less."""
_UNTRUSTED: tuple[MessageSource, ...] = ("document", "imported")
_ORDER = get_args(MessageSource)
_OF_ROLE: dict[Role, MessageSource] = {
    "system": "developer",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# How agents of the ReAct kind call tools, and are told what these gave, in texts.
_ACTION = re.compile(r"^\s*Action:\s*([\w.-]+)", re.MULTILINE)
_OBSERVATION = re.compile(r"^\s*Observation:", re.MULTILINE)
_USER = ("user_id", "user")
_THREAD = "thread_id"


def message_sources(
    messages: Sequence[Message], untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS
) -> list[MessageSource]:
    """Return where each message comes from.

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
        is_result = message.role == "tool"
        if is_result or (message.role == "user" and _OBSERVATION.search(message.text)):
            name = message.name or by_id.get(message.tool_call_id or "")
            # A result of no known tool may be that of any which was called.
            names = [name] if is_result and name else called
            untrusted = any(fnmatchcase(one.lower(), each) for one in names for each in patterns)
            yield "document" if untrusted else "tool"
        else:
            yield _OF_ROLE[message.role]


def least_trusted(trace: Trace, untrusted_tools: Sequence[str] = UNTRUSTED_TOOLS) -> MessageSource:
    """Return the least trusted source that the last response of a run follows.

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
    return worst(message_sources([*trace.earlier, *trace.messages[:end]], untrusted_tools))


def worst(sources: Sequence[MessageSource]) -> MessageSource:
    """Return the least trusted of some sources."""
    return max(sources, key=_ORDER.index)


def is_untrusted(source: MessageSource) -> bool:
    """Return whether others than the developer and the user may have written it."""
    return source in _UNTRUSTED


def is_marked(metadata: Mapping[str, Any], mark: Mapping[str, bool]) -> bool:
    """Return whether metadata hold a mark, such as `IMPORTED`."""
    return all(metadata.get(key) is value for key, value in mark.items())


def without(metadata: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Return metadata but some."""
    return {key: value for key, value in metadata.items() if key not in keys}


def refuse_reserved(trace: Trace) -> None:
    """Refuse a trace with metadata that only this package sets.

    Raises:
        TraceError: It has such metadata.
    """
    found = [key for key in trace.metadata if _is_reserved(key) and key not in _ALLOWED]
    if found:
        raise TraceError(
            f"A trace has the metadata {', '.join(found)[:200]}, which only a memory itself sets "
            f"({VERDICT}, lag_…). Remove them, or carry logs from store to store by "
            "memory.export_to and import_from (`kvlog export` and `kvlog import`)."
        )


def restricting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without what only a memory sets, but for what merely restricts its log."""
    return {
        key: value
        for key, value in metadata.items()
        if not _is_reserved(key) or key in _RESTRICTING
    }


def _is_reserved(key: str) -> bool:
    return key == VERDICT or key.startswith("lag_")


@dataclass(frozen=True)
class Owner:
    """Whose run it is.

    Attributes:
        user: Its user, if one is named.
        thread: Its thread, if it is one of several runs of a conversation.
    """

    user: str | None = None
    thread: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Owner:
        """Return the owner that metadata name: by ``user_id`` or ``user``, and ``thread_id``."""
        users = (named for key in _USER if (named := _name(metadata.get(key))) is not None)
        return cls(next(users, None), _name(metadata.get(_THREAD)))

    def asking(self, where: Mapping[str, Any] | None) -> Owner:
        """Return the owner that a filter names, or else this one."""
        named = Owner.of(_equal(where or {}))
        return Owner(named.user or self.user, named.thread or self.thread)

    @property
    def marks(self) -> list[str]:
        """The texts that a log of this owner's run is known by."""
        if self.user is None:
            return [_mark("thread", self.thread)]
        return [_mark("user", self.user), _mark("thread of a user", self.thread)][
            : 1 if self.thread is None else 2
        ]

    @property
    def readable(self) -> list[str]:
        """The marks of logs that are this owner's.

        With a user on both sides, the user decides, and otherwise the thread. A run without both
        is nobody's, as are others without both.
        """
        if self.user is None:
            kinds = ["thread"] if self.thread is None else ["thread", "thread of a user"]
            return [_mark(kind, self.thread) for kind in kinds]
        found = [_mark("user", self.user)]
        return found if self.thread is None else [*found, _mark("thread", self.thread)]


NOBODY = Owner()
"""The owner of runs without a user and a thread."""


def _name(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value) or None


def _equal(where: Mapping[str, Any]) -> dict[str, Any]:
    """What a filter says that metadata are."""
    found: dict[str, Any] = {}
    for key, value in where.items():
        if key == "$and":
            for part in value:
                found |= _equal(part)
        elif isinstance(value, Mapping):
            found[key] = value.get("$eq")
        else:
            found[key] = value
    return found


def _mark(kind: str, name: str | None) -> str:
    # A hash: names may be long, and hold what databases do not take.
    text = f"{kind}\n{name or ''}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]

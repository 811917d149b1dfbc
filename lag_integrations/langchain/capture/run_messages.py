"""The messages of a run, and which of them a prompt, an answer or a result repeats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage

from lag_integrations.langchain.capture.messages import key_of, role_of


@dataclass(eq=False)
class RunMessage:
    """A message of the run."""

    message: BaseMessage
    run_id: UUID  # of the run that added it
    made_here: bool  # an answer or result of this run, not only in a prompt
    failed: bool = False  # in a step that failed
    is_history: bool = False  # of an earlier turn of the conversation
    seen: bool = False  # in the prompt of a model


class RunMessages:
    """The messages of one root run, in order. Not thread safe.

    Attributes:
        all: The messages.
        by_id: Those that have an id.
        tool_call_ids: Ids of the calls in them.
    """

    def __init__(self) -> None:
        self.all: list[RunMessage] = []
        self.by_id: dict[str, RunMessage] = {}
        self.tool_call_ids: set[str] = set()
        self._by_key: defaultdict[Hashable, list[RunMessage]] = defaultdict(list)
        self._without_key: defaultdict[str, list[RunMessage]] = defaultdict(list)  # by role

    def extend(self, others: RunMessages) -> None:
        """Append the messages of a run that this one continues in."""
        for one in others.all:
            self._index(one)
            self.all.append(one)

    def recognise(
        self, messages: Sequence[BaseMessage]
    ) -> list[tuple[BaseMessage, RunMessage | None]]:
        """Return each message with the known one that it repeats, if any."""
        by_id = self.by_id
        found = [by_id.get(message.id) if message.id else None for message in messages]
        used = {id(one) for one in found if one is not None}
        for place, (message, known) in enumerate(zip(messages, found, strict=True)):
            if known is not None:
                if _calls(message) != _calls(known.message):  # somebody changed the calls
                    known.message = message.model_copy()
                continue
            for one in self.with_content_of(message):
                if id(one) not in used:
                    self.learn_id(one, message)
                    used.add(id(one))
                    found[place] = one
                    break
        return list(zip(messages, found, strict=True))

    def keep(self, message: BaseMessage, run_id: UUID, *, made_here: bool) -> RunMessage:
        """Append a message, and return it."""
        # A copy, since users may change theirs; but a graph's own are many, and it replaces them.
        is_of_graph = message.id is not None and not made_here
        one = RunMessage(message if is_of_graph else message.model_copy(), run_id, made_here)
        self._index(one)
        self.all.append(one)
        return one

    def _index(self, one: RunMessage) -> None:
        if one.message.id:
            self.by_id.setdefault(one.message.id, one)
        self._without_key[role_of(one.message)].append(one)
        self.tool_call_ids.update(call["id"] for call in _calls(one.message) if call["id"])

    def with_content_of(self, message: BaseMessage) -> Sequence[RunMessage]:
        """Return the known messages of the same content. Keys are costly, so they are made late."""
        if not self.all:
            return ()
        for one in self._without_key.pop(role_of(message), ()):
            self._by_key[key_of(one.message)].append(one)
        return self._by_key.get(key_of(message), ())

    def learn_id(self, one: RunMessage, message: BaseMessage) -> None:
        """Know a message by the id of one that repeats it."""
        if message.id:
            self.by_id.setdefault(message.id, one)
            if one.message.id is None:  # then it is a copy
                one.message.id = message.id

    def take_over(self, known: RunMessage, message: BaseMessage) -> None:
        """Take the text of a message that somebody changed since a model or tool gave it."""
        if str(message.text) != str(known.message.text):
            known.message = message.model_copy()
            self._without_key[role_of(message)].append(known)


def _calls(message: BaseMessage) -> Sequence[Any]:
    return message.tool_calls if isinstance(message, AIMessage) else ()

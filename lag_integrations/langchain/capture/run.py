"""One root run while it lasts: who said what, and what of it becomes the trace."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from uuid import UUID

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.capture.run_metadata import Metadata, in_scope
from lag_integrations.errors import TraceError
from lag_integrations.langchain.capture.messages import (
    answer_texts,
    as_step,
    is_unreadable,
    key_of,
    log_id_of,
    log_ids_of,
    messages_in,
    role_of,
    source_of,
    task_of,
    was_cut_off,
)
from lag_integrations.memory.rendering import without_texts
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message
from lag_integrations.traces.sources import SOURCES, Source
from lag_integrations.traces.trace import Outcome, Trace

_MIN_RECALLED_TEXT = 20
"""Characters: what is shorter could as well be a user's own word."""


@dataclass(eq=False)
class _Said:
    """A message of the run."""

    message: BaseMessage
    by: UUID  # the run that brought it
    made_here: bool  # said in this run, not only shown to it
    failed: bool = False  # in a step that failed
    past: bool = False  # of an earlier turn of the conversation


class Run:
    """What one root run and all its children say and do. Not thread safe.

    Args:
        id: Id of the root run.
        inputs: What it was given.
        name: Its name.
        metadata: What users say of it.
    """

    def __init__(
        self,
        id: UUID,
        inputs: Any = None,
        name: str | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.metadata = dict(metadata or {})
        self.thread: str | None = None
        self.is_graph = False
        self.paused = False
        self.ended = False
        self.error: BaseException | None = None
        self.abandoned = False
        self.touched = time.monotonic()
        self.calls: set[UUID] = set()  # model calls that go on
        self.parents: dict[UUID, UUID] = {}
        self.task = task_of(inputs)
        self._asked: BaseMessage | None = None
        self._past: Sequence[BaseMessage] = ()  # what was said before the task
        self._outputs: Any = None
        self._earlier: list[UUID] = []  # the runs that this one continues
        self._started_at = datetime.now(timezone.utc)
        self._said: list[_Said] = []
        self._by_id: dict[str, _Said] = {}
        self._by_key: defaultdict[Hashable, list[_Said]] = defaultdict(list)
        self._without_key: defaultdict[str, list[_Said]] = defaultdict(list)  # by role
        self._called: set[str] = set()  # ids of tool calls
        self._unseen: list[_Said] = []  # results of no such call, and in no prompt yet
        self._helped: dict[str, None] = {}
        self._recalled: dict[str, str] = {}
        self.sources: dict[Source, None] = {}

    def show(self, messages: Sequence[BaseMessage], by: UUID) -> None:
        """A model call is given messages: those that are new are kept.

        A call repeats the conversation so far. A message is known by its id, or else by its
        content; what a user really says twice in a conversation is kept twice.
        """
        if self._asked is None:
            self._asked = next((one for one in reversed(messages) if one.type == "human"), None)
        past = self._before_the_task(messages)
        if len(past) > len(self._past):
            self._past = [message.model_copy() for message in past]
        is_past = {id(message) for message in past if message.type != "system"}
        for message, known in self._recognise(messages):
            if known is None:
                one = self._keep(message, by, made_here=False)
                one.past = id(message) in is_past
                if isinstance(message, ToolMessage):
                    keys = key_of(message), ("tool", str(message.text), ())
                    self._unseen = [one for one in self._unseen if key_of(one.message) not in keys]
            elif known.failed:
                known.by, known.failed = by, False

    def _before_the_task(self, messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
        """The messages of earlier turns: up to the last answer before what the user asks here."""
        if self._asked is None:
            return ()
        asked = key_of(self._asked)
        humans = (place for place, one in enumerate(messages) if one.type == "human")
        place = max((place for place in humans if key_of(messages[place]) == asked), default=0)
        while place and messages[place - 1].type not in ("ai", "tool"):
            place -= 1
        before = messages[:place]
        results = {key_of(one.message) for one in self._unseen}
        if any(key_of(message) in results for message in before) or any(
            known and known.made_here for _, known in self._recognise(before)
        ):
            return ()  # said in this run
        return before

    def say(self, message: BaseMessage, by: UUID) -> None:
        """A model or a tool says something."""
        for log_id in log_ids_of(message):
            self._helped[log_id] = None
        if not self._is_passed_on(message, by):
            self._keep(message, by, made_here=True)

    def result(self, output: Any, name: str | None, by: UUID) -> None:
        """A tool returned: messages, or what the agent may yet put into one, or never."""
        if isinstance(output, ToolMessage):
            if isinstance(output.artifact, list):
                self.found(output.artifact)
            if output.tool_call_id in self._called:
                self.say(output, by)
            else:  # the call was not made by a model here; it will stand in a prompt, or never
                self._unseen.append(_Said(output.model_copy(), by, made_here=True))
        elif messages := messages_in(output):
            for message in messages:
                if isinstance(message, ToolMessage) and message.id not in self._by_id:
                    self.result(message, name, by)
        elif isinstance(output, list):
            for item in output:
                self.result(item, name, by)
        elif not hasattr(output, "goto"):  # a Command without messages says nothing
            self.result(ToolMessage(str(output), tool_call_id="", name=name), None, by)

    def found(self, documents: Iterable[Any]) -> None:
        """Take note of documents that a retriever or tool found; some may be logs."""
        for document in documents:
            if not isinstance(document, Document):
                continue
            log_id = log_id_of(document)
            if log_id is None:
                self.sources[source_of(document)] = None
                continue
            self._helped[log_id] = None
            if len(document.page_content) >= _MIN_RECALLED_TEXT:
                self._recalled[document.page_content] = log_id

    def fail(self, by: UUID) -> None:
        """A step failed: what was said in it is left out, should the run go on without it."""
        for one in self._said:
            if self._is_within(one.by, by):
                one.failed = True
        self._unseen = [one for one in self._unseen if not self._is_within(one.by, by)]

    def end(self, outputs: Any = None, error: BaseException | None = None) -> None:
        """The root run ended."""
        self.ended = True
        self.error = error
        self._outputs = outputs
        self.abandoned = bool(self.calls) if error is None else is_cancellation(error)

    def follow(self, half: Run) -> None:
        """Go on where an interrupted run of the same thread ended."""
        mine, self._said = self._said, half._said
        self._by_id, self._by_key = half._by_id, half._by_key
        self._without_key = half._without_key
        for one in mine:
            self._index(one)
            self._said.append(one)
        self._unseen = half._unseen + self._unseen
        self._called |= half._called
        self._helped = {**half._helped, **self._helped}
        self._recalled = {**half._recalled, **self._recalled}
        self.sources = {**half.sources, **self.sources}
        self._started_at = half._started_at
        self._earlier = [*half._earlier, half.id]
        self.metadata = {**half.metadata, **self.metadata}
        self.task = self.task or half.task
        self._asked = half._asked or self._asked
        self._past = half._past or self._past

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.error is not None and not self.abandoned

    @property
    def waits_for_more(self) -> bool:
        """Whether this is the first half of a run: interrupted, to be resumed in its thread."""
        if self.thread is None:
            return False
        messages = messages_in(self._outputs)
        asks = messages and isinstance(messages[-1], AIMessage) and messages[-1].tool_calls
        return self.paused or bool(self.is_graph and asks)

    def trace(self) -> Trace:
        """The trace of the run, once it ended.

        Raises:
            TraceError: Nothing was said, or only an answer of another run is known.
        """
        final = self._final()
        outcome = self._outcome(final)
        said = [one for one in self._said if not one.past]
        if not self.abandoned and self.error is None:
            went_well = [one for one in said if not one.failed]
            # A chain may have gone on with what it could read in a failed step.
            if any(isinstance(one.message, AIMessage) for one in went_well):
                said = went_well
        steps: list[Message] = []
        last = None
        for one in (*said, *self._unseen):
            for log_id in log_ids_of(one.message):
                self._helped[log_id] = None
            if (step := as_step(one.message)) is None:
                continue
            if one is final and one.made_here:
                last = step
            else:
                steps.append(without_texts(step, self._recalled))
        if last is not None:  # the root's own answer, whatever its agents said after it
            steps.append(last)
        if all(step.role in ("assistant", "tool") for step in steps):
            raise TraceError("No model was asked anything in it.")
        metadata: dict[str, Any] = {**in_scope(self.metadata), "source": "langchain"}
        if self.name:
            metadata["run_name"] = self.name
        if self.thread is not None:
            metadata["thread_id"] = self.thread
        if self._earlier:
            metadata["earlier_runs"] = [run_id.hex for run_id in self._earlier]
        if self.sources:
            metadata[SOURCES] = [source.to_json() for source in self.sources]
        if self.abandoned:
            metadata["abandoned"] = True
        if self.failed:
            metadata["error"] = type(self.error).__name__
        return Trace.from_messages(
            steps,
            task=self.task or self._question,
            earlier=earlier_turns([step for one in self._past if (step := self._step(one))]),
            outcome=outcome,
            id=self.id.hex,
            started_at=self._started_at,
            ended_at=datetime.now(timezone.utc),
            helped_by=tuple(self._helped),
            metadata=metadata,
        )

    def _step(self, message: BaseMessage) -> Message | None:
        step = as_step(message)
        return None if step is None else without_texts(step, self._recalled)

    @property
    def _question(self) -> str | None:
        step = None if self._asked is None else self._step(self._asked)
        return None if step is None else step.text

    def _outcome(self, final: _Said | None) -> Outcome:
        if self.abandoned:
            return "incomplete"
        if self.failed:
            return "failure"
        said = (one for one in reversed(self._said) if isinstance(one.message, AIMessage))
        last = final or next(said, None)
        if last is None:
            return "success"
        if was_cut_off(last.message):  # maybe in the midst of a call
            return "incomplete"
        return "failure" if is_unreadable(last.message) else "success"

    def _final(self) -> _Said | None:
        """The root's own answer; None if its output does not tell."""
        if messages := messages_in(self._outputs):
            found = self._recognise(messages)
            last = found[-1][1] if found else None
            # What ends a graph's state need not have been said by a model, or shown to one: a
            # result that is returned directly, a middleware's word.
            first = next((i for i in range(len(found), 0, -1) if found[i - 1][1] is not None), 0)
            for message, _ in found[first:]:
                last = self._keep(message, self.id, made_here=first > 0)
            if last is not None and _answers(last.message):
                return last
        for text in answer_texts(self._outputs):
            for one in reversed(self._said):
                if _answers(one.message) and str(one.message.text).strip() == text.strip():
                    return one
        return None

    def _is_passed_on(self, message: BaseMessage, by: UUID) -> bool:
        """Whether a model repeats what another one said: one that it called, for instance."""
        known = self._by_id.get(message.id) if message.id else None
        if known is not None and key_of(known.message) == key_of(message):
            return True
        if by in self.parents.values():
            for one in self._like(message):
                if one.by != by and self._is_within(one.by, by):
                    self._learn_id(one, message)
                    return True
        return False

    def _recognise(self, messages: Sequence[BaseMessage]) -> list[tuple[BaseMessage, _Said | None]]:
        """Each message of this turn with what is known of it."""
        by_id = self._by_id
        found = [by_id.get(message.id) if message.id else None for message in messages]
        used = {id(one) for one in found if one is not None}
        for place, (message, known) in enumerate(zip(messages, found, strict=True)):
            if known is not None:
                if _calls(message) != _calls(known.message):  # somebody changed them
                    known.message = message.model_copy()
                continue
            for one in self._like(message):
                if id(one) not in used:
                    self._learn_id(one, message)
                    used.add(id(one))
                    found[place] = one
                    break
        return list(zip(messages, found, strict=True))

    def _keep(self, message: BaseMessage, by: UUID, *, made_here: bool) -> _Said:
        # A copy, since users may change theirs; but a graph's own are many, and it replaces them.
        is_of_graph = message.id is not None and not made_here
        one = _Said(message if is_of_graph else message.model_copy(), by, made_here)
        self._index(one)
        self._said.append(one)
        return one

    def _index(self, one: _Said) -> None:
        if one.message.id:
            self._by_id.setdefault(one.message.id, one)
        self._without_key[role_of(one.message)].append(one)
        self._called.update(call["id"] for call in _calls(one.message) if call["id"])

    def _like(self, message: BaseMessage) -> Sequence[_Said]:
        """What was said with the same content. Keys are made when they are needed: they cost."""
        if not self._said:
            return ()
        for one in self._without_key.pop(role_of(message), ()):
            self._by_key[key_of(one.message)].append(one)
        return self._by_key.get(key_of(message), ())

    def _learn_id(self, one: _Said, message: BaseMessage) -> None:
        if message.id:
            self._by_id.setdefault(message.id, one)
            if one.message.id is None:  # then it is a copy
                one.message.id = message.id

    def _is_within(self, run_id: UUID, ancestor: UUID) -> bool:
        current: UUID | None = run_id
        while current is not None:
            if current == ancestor:
                return True
            current = self.parents.get(current)
        return False


def _calls(message: BaseMessage) -> Sequence[Any]:
    return message.tool_calls if isinstance(message, AIMessage) else ()


def _answers(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage) and not message.tool_calls and bool(message.text.strip())

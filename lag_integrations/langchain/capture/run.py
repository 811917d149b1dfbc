"""One root run: its messages while it goes on, and its trace once it is over."""

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
"""Characters of a recalled text; a shorter one could as well be a user's own words."""


@dataclass(eq=False)
class _RunMessage:
    """A message of the run."""

    message: BaseMessage
    run_id: UUID  # of the run that added it
    made_here: bool  # an answer or result of this run, not only in a prompt
    failed: bool = False  # in a step that failed
    is_history: bool = False  # of an earlier turn of the conversation


class Run:
    """The messages of one root run and of all runs within it. Not thread safe.

    Args:
        id: Id of the root run.
        inputs: Its inputs.
        name: Its name.
        metadata: Metadata that its log shall have.
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
        self.model_calls: set[UUID] = set()  # those that go on
        self.parents: dict[UUID, UUID] = {}
        self.task = task_of(inputs)
        self._question: BaseMessage | None = None
        self._history: Sequence[BaseMessage] = ()  # messages of earlier turns
        self._outputs: Any = None
        self._earlier_runs: list[UUID] = []  # that this one continues
        self._started_at = datetime.now(timezone.utc)
        self._messages: list[_RunMessage] = []
        self._by_id: dict[str, _RunMessage] = {}
        self._by_key: defaultdict[Hashable, list[_RunMessage]] = defaultdict(list)
        self._without_key: defaultdict[str, list[_RunMessage]] = defaultdict(list)  # by role
        self._tool_call_ids: set[str] = set()
        self._unseen_results: list[_RunMessage] = []  # of other calls, and in no prompt yet
        self._recalled_log_ids: dict[str, None] = {}
        self._recalled_texts: dict[str, str] = {}
        self.sources: dict[Source, None] = {}

    def add_prompt(self, messages: Sequence[BaseMessage], run_id: UUID) -> None:
        """Add those messages of a model call's prompt that are new.

        A prompt repeats the conversation so far. A message is recognised by its id, or else by its
        content; what a user really says twice in a conversation is kept twice.
        """
        if self._question is None:
            self._question = next((one for one in reversed(messages) if one.type == "human"), None)
        history = self._history_in(messages)
        if len(history) > len(self._history):
            self._history = [message.model_copy() for message in history]
        in_history = {id(message) for message in history if message.type != "system"}
        for message, known in self._recognise(messages):
            if known is None:
                one = self._keep(message, run_id, made_here=False)
                one.is_history = id(message) in in_history
                if isinstance(message, ToolMessage):
                    keys = key_of(message), ("tool", str(message.text), ())
                    self._unseen_results = [
                        one for one in self._unseen_results if key_of(one.message) not in keys
                    ]
            elif known.failed:
                known.run_id, known.failed = run_id, False

    def _history_in(self, messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
        """Return the messages of earlier turns: up to the last answer before the question."""
        if self._question is None:
            return ()
        asked = key_of(self._question)
        humans = (place for place, one in enumerate(messages) if one.type == "human")
        place = max((place for place in humans if key_of(messages[place]) == asked), default=0)
        while place and messages[place - 1].type not in ("ai", "tool"):
            place -= 1
        before = messages[:place]
        results = {key_of(one.message) for one in self._unseen_results}
        if any(key_of(message) in results for message in before) or any(
            known and known.made_here for _, known in self._recognise(before)
        ):
            return ()  # the answer was made in this run
        return before

    def add_message(self, message: BaseMessage, run_id: UUID) -> None:
        """Add the answer of a model or the result of a tool."""
        for log_id in log_ids_of(message):
            self._recalled_log_ids[log_id] = None
        if not self._is_repeated(message, run_id):
            self._keep(message, run_id, made_here=True)

    def add_tool_result(self, output: Any, name: str | None, run_id: UUID) -> None:
        """Add what a tool returned: messages, or what an agent may put into one later, or never."""
        if isinstance(output, ToolMessage):
            if isinstance(output.artifact, list):
                self.add_retrieved(output.artifact)
            if output.tool_call_id in self._tool_call_ids:
                self.add_message(output, run_id)
            else:  # the call was not made by a model here; it will stand in a prompt, or never
                self._unseen_results.append(
                    _RunMessage(output.model_copy(), run_id, made_here=True)
                )
        elif messages := messages_in(output):
            for message in messages:
                if isinstance(message, ToolMessage) and message.id not in self._by_id:
                    self.add_tool_result(message, name, run_id)
        elif isinstance(output, list):
            for item in output:
                self.add_tool_result(item, name, run_id)
        elif not hasattr(output, "goto"):  # a Command without messages says nothing
            self.add_tool_result(ToolMessage(str(output), tool_call_id="", name=name), None, run_id)

    def add_retrieved(self, documents: Iterable[Any]) -> None:
        """Add documents that a retriever or tool found; some may be logs."""
        for document in documents:
            if not isinstance(document, Document):
                continue
            log_id = log_id_of(document)
            if log_id is None:
                self.sources[source_of(document)] = None
                continue
            self._recalled_log_ids[log_id] = None
            if len(document.page_content) >= _MIN_RECALLED_TEXT:
                self._recalled_texts[document.page_content] = log_id

    def fail(self, run_id: UUID) -> None:
        """Mark a step as failed: its messages are left out, should the run go on without it."""
        for one in self._messages:
            if self._is_within(one.run_id, run_id):
                one.failed = True
        self._unseen_results = [
            one for one in self._unseen_results if not self._is_within(one.run_id, run_id)
        ]

    def end(self, outputs: Any = None, error: BaseException | None = None) -> None:
        """Take the outputs or the error of the root run."""
        self.ended = True
        self.error = error
        self._outputs = outputs
        self.abandoned = bool(self.model_calls) if error is None else is_cancellation(error)

    def continue_from(self, earlier: Run) -> None:
        """Prepend the messages of an interrupted run of the same thread."""
        mine, self._messages = self._messages, earlier._messages
        self._by_id, self._by_key = earlier._by_id, earlier._by_key
        self._without_key = earlier._without_key
        for one in mine:
            self._index(one)
            self._messages.append(one)
        self._unseen_results = earlier._unseen_results + self._unseen_results
        self._tool_call_ids |= earlier._tool_call_ids
        self._recalled_log_ids = {**earlier._recalled_log_ids, **self._recalled_log_ids}
        self._recalled_texts = {**earlier._recalled_texts, **self._recalled_texts}
        self.sources = {**earlier.sources, **self.sources}
        self._started_at = earlier._started_at
        self._earlier_runs = [*earlier._earlier_runs, earlier.id]
        self.metadata = {**earlier.metadata, **self.metadata}
        self.task = self.task or earlier.task
        self._question = earlier._question or self._question
        self._history = earlier._history or self._history

    @property
    def failed(self) -> bool:
        """Return whether the run ended with an error."""
        return self.error is not None and not self.abandoned

    @property
    def waits_for_more(self) -> bool:
        """Return whether the run was interrupted, to be resumed in its thread."""
        if self.thread is None:
            return False
        messages = messages_in(self._outputs)
        asks = messages and isinstance(messages[-1], AIMessage) and messages[-1].tool_calls
        return self.paused or bool(self.is_graph and asks)

    def trace(self) -> Trace:
        """Return the trace of the run, once it ended.

        Raises:
            TraceError: Nothing was said, or only an answer of another run is known.
        """
        final = self._final()
        outcome = self._outcome(final)
        messages = [one for one in self._messages if not one.is_history]
        if not self.abandoned and self.error is None:
            went_well = [one for one in messages if not one.failed]
            # A chain may have gone on with what it could read in a failed step.
            if any(isinstance(one.message, AIMessage) for one in went_well):
                messages = went_well
        steps: list[Message] = []
        last = None
        for one in (*messages, *self._unseen_results):
            for log_id in log_ids_of(one.message):
                self._recalled_log_ids[log_id] = None
            if (step := as_step(one.message)) is None:
                continue
            if one is final and one.made_here:
                last = step
            else:
                steps.append(without_texts(step, self._recalled_texts))
        if last is not None:  # the root's own answer, whatever its agents said after it
            steps.append(last)
        if all(step.role in ("assistant", "tool") for step in steps):
            raise TraceError("No model was asked anything in it.")
        metadata: dict[str, Any] = {**in_scope(self.metadata), "source": "langchain"}
        if self.name:
            metadata["run_name"] = self.name
        if self.thread is not None:
            metadata["thread_id"] = self.thread
        if self._earlier_runs:
            metadata["earlier_runs"] = [run_id.hex for run_id in self._earlier_runs]
        if self.sources:
            metadata[SOURCES] = [source.to_json() for source in self.sources]
        if self.abandoned:
            metadata["abandoned"] = True
        if self.failed:
            metadata["error"] = type(self.error).__name__
        return Trace.from_messages(
            steps,
            task=self.task or self._question_text,
            earlier=earlier_turns([step for one in self._history if (step := self._step(one))]),
            outcome=outcome,
            id=self.id.hex,
            started_at=self._started_at,
            ended_at=datetime.now(timezone.utc),
            helped_by=tuple(self._recalled_log_ids),
            metadata=metadata,
        )

    def _step(self, message: BaseMessage) -> Message | None:
        step = as_step(message)
        return None if step is None else without_texts(step, self._recalled_texts)

    @property
    def _question_text(self) -> str | None:
        step = None if self._question is None else self._step(self._question)
        return None if step is None else step.text

    def _outcome(self, final: _RunMessage | None) -> Outcome:
        if self.abandoned:
            return "incomplete"
        if self.failed:
            return "failure"
        answers = (one for one in reversed(self._messages) if isinstance(one.message, AIMessage))
        last = final or next(answers, None)
        if last is None:
            return "success"
        if was_cut_off(last.message):  # maybe within a call
            return "incomplete"
        return "failure" if is_unreadable(last.message) else "success"

    def _final(self) -> _RunMessage | None:
        """Return the root's own answer; None if its outputs do not tell."""
        if messages := messages_in(self._outputs):
            found = self._recognise(messages)
            last = found[-1][1] if found else None
            # The last messages of a graph's state may stand in no answer and no prompt: a result
            # that is returned directly, or a message that middleware adds.
            first = next((i for i in range(len(found), 0, -1) if found[i - 1][1] is not None), 0)
            for message, _ in found[first:]:
                last = self._keep(message, self.id, made_here=first > 0)
            if last is not None and _answers(last.message):
                return last
        for text in answer_texts(self._outputs):
            for one in reversed(self._messages):
                if _answers(one.message) and str(one.message.text).strip() == text.strip():
                    return one
        return None

    def _is_repeated(self, message: BaseMessage, run_id: UUID) -> bool:
        """Return whether a run passes on an answer that is known, as of a model that it called."""
        known = self._by_id.get(message.id) if message.id else None
        if known is not None and key_of(known.message) == key_of(message):
            return True
        if run_id in self.parents.values():
            for one in self._with_content_of(message):
                if one.run_id != run_id and self._is_within(one.run_id, run_id):
                    self._learn_id(one, message)
                    return True
        return False

    def _recognise(
        self, messages: Sequence[BaseMessage]
    ) -> list[tuple[BaseMessage, _RunMessage | None]]:
        """Return each message with the known one that it repeats, if any."""
        by_id = self._by_id
        found = [by_id.get(message.id) if message.id else None for message in messages]
        used = {id(one) for one in found if one is not None}
        for place, (message, known) in enumerate(zip(messages, found, strict=True)):
            if known is not None:
                if _calls(message) != _calls(known.message):  # somebody changed the calls
                    known.message = message.model_copy()
                continue
            for one in self._with_content_of(message):
                if id(one) not in used:
                    self._learn_id(one, message)
                    used.add(id(one))
                    found[place] = one
                    break
        return list(zip(messages, found, strict=True))

    def _keep(self, message: BaseMessage, run_id: UUID, *, made_here: bool) -> _RunMessage:
        # A copy, since users may change theirs; but a graph's own are many, and it replaces them.
        is_of_graph = message.id is not None and not made_here
        one = _RunMessage(message if is_of_graph else message.model_copy(), run_id, made_here)
        self._index(one)
        self._messages.append(one)
        return one

    def _index(self, one: _RunMessage) -> None:
        if one.message.id:
            self._by_id.setdefault(one.message.id, one)
        self._without_key[role_of(one.message)].append(one)
        self._tool_call_ids.update(call["id"] for call in _calls(one.message) if call["id"])

    def _with_content_of(self, message: BaseMessage) -> Sequence[_RunMessage]:
        """Return the known messages of the same content. Keys are costly, so they are made late."""
        if not self._messages:
            return ()
        for one in self._without_key.pop(role_of(message), ()):
            self._by_key[key_of(one.message)].append(one)
        return self._by_key.get(key_of(message), ())

    def _learn_id(self, one: _RunMessage, message: BaseMessage) -> None:
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

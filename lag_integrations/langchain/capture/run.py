"""One root run: its messages while it goes on, and its trace once it is over."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
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
    asks_in_messages,
    is_unreadable,
    key_of,
    log_id_of,
    log_ids_of,
    messages_in,
    source_of,
    task_of,
    was_cut_off,
)
from lag_integrations.langchain.capture.run_messages import RunMessage, RunMessages
from lag_integrations.memory.rendering import without_texts
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message
from lag_integrations.traces.sources import SOURCES, Source
from lag_integrations.traces.trace import Outcome, Trace

_MIN_RECALLED_TEXT = 20
"""Characters of a recalled text; a shorter one could as well be a user's own words."""


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
        self._is_message = asks_in_messages(inputs)
        self._task_was_seen = False  # by a model, as it stands in the inputs
        self._question: BaseMessage | None = None
        self._history: Sequence[BaseMessage] = ()  # messages of earlier turns
        self._outputs: Any = None
        self._earlier_runs: list[UUID] = []  # that this one continues
        self._started_at = datetime.now(timezone.utc)
        self._messages = RunMessages()
        self._unseen_results: list[RunMessage] = []  # of other calls, and in no prompt yet
        self._recalled_log_ids: dict[str, None] = {}
        self._recalled_texts: dict[str, str] = {}
        self.sources: dict[Source, None] = {}

    def add_prompt(self, messages: Sequence[BaseMessage], run_id: UUID) -> None:
        """Add those messages of a model call's prompt that are new.

        A prompt repeats the conversation so far. A message is recognised by its id, or else by its
        content; what a user really says twice in a conversation is kept twice.
        """
        self._find_question(messages)
        history = self._history_in(messages)
        if len(history) > len(self._history):
            self._history = [message.model_copy() for message in history]
        in_history = {id(message) for message in history if message.type != "system"}
        for message, known in self._messages.recognise(messages):
            if known is None:
                one = self._messages.keep(message, run_id, made_here=False)
                one.is_history = id(message) in in_history
                if isinstance(message, ToolMessage):
                    keys = key_of(message), ("tool", str(message.text), ())
                    self._unseen_results = [
                        one for one in self._unseen_results if key_of(one.message) not in keys
                    ]
            else:
                is_result = isinstance(message, ToolMessage) and known.made_here
                # Something may stand around it; but a part may have been redacted, too.
                if is_result and not known.seen and str(known.message.text) not in message.text:
                    self._messages.take_over(known, message)
                if known.failed:
                    known.run_id, known.failed = run_id, False
                known.seen = True

    def _find_question(self, messages: Sequence[BaseMessage]) -> None:
        """Take the question from the first prompt that holds the task; else from the first one.

        A summary, or a search query, may have been asked for before.
        """
        humans = [one for one in reversed(messages) if one.type == "human"]
        if self.task and not self._task_was_seen:
            self._task_was_seen = any(self.task in str(one.text) for one in humans)
            asked = next((one for one in humans if str(one.text) == self.task), None)
            if asked is not None:
                self._question, self._history = asked, ()
        if self._question is None:
            self._question = next(iter(humans), None)

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
            known and known.made_here for _, known in self._messages.recognise(before)
        ):
            return ()  # the answer was made in this run
        return before

    def add_message(self, message: BaseMessage, run_id: UUID) -> None:
        """Add the answer of a model or the result of a tool."""
        for log_id in log_ids_of(message):
            self._recalled_log_ids[log_id] = None
        if not self._is_repeated(message, run_id):
            self._messages.keep(message, run_id, made_here=True)

    def add_tool_result(self, output: Any, name: str | None, run_id: UUID) -> None:
        """Add what a tool returned: messages, or what an agent may put into one later, or never."""
        if isinstance(output, ToolMessage):
            if isinstance(output.artifact, list):
                self.add_retrieved(output.artifact)
            if output.tool_call_id in self._messages.tool_call_ids:
                self.add_message(output, run_id)
            else:  # the call was not made by a model here; it will stand in a prompt, or never
                self._unseen_results.append(RunMessage(output.model_copy(), run_id, made_here=True))
        elif messages := messages_in(output):
            for message in messages:
                if isinstance(message, ToolMessage) and message.id not in self._messages.by_id:
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
        for one in self._messages.all:
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
        self._messages.extend(mine)
        self._unseen_results = earlier._unseen_results + self._unseen_results
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
        messages = [one for one in self._messages.all if not one.is_history]
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
            task=self._seen_task,
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
    def _seen_task(self) -> str | None:
        """The task; as a model saw it, if somebody redacted the user's message before."""
        if not self.task or self._task_was_seen or not self._is_message or not self._question:
            return self.task or self._question_text
        humans = [one for one in messages_in(self._outputs) if one.type == "human"]
        is_changed = humans and not any(self.task in str(one.text) for one in humans)
        return self._question_text if is_changed else self.task

    @property
    def _question_text(self) -> str | None:
        step = None if self._question is None else self._step(self._question)
        return None if step is None else step.text

    def _outcome(self, final: RunMessage | None) -> Outcome:
        if self.abandoned:
            return "incomplete"
        if self.failed:
            return "failure"
        answers = (
            one for one in reversed(self._messages.all) if isinstance(one.message, AIMessage)
        )
        last = final or next(answers, None)
        if last is None:
            return "success"
        if was_cut_off(last.message):  # maybe within a call
            return "incomplete"
        return "failure" if is_unreadable(last.message) else "success"

    def _final(self) -> RunMessage | None:
        """Return the root's own answer; None if its outputs do not tell."""
        if messages := messages_in(self._outputs):
            found = self._messages.recognise(messages)
            for message, known in found:
                if known is not None and isinstance(message, AIMessage):
                    self._messages.take_over(known, message)  # what the run answered in the end
            last = found[-1][1] if found else None
            # The last messages of a graph's state may stand in no answer and no prompt: a result
            # that is returned directly, or a message that middleware adds.
            first = next((i for i in range(len(found), 0, -1) if found[i - 1][1] is not None), 0)
            begin = first or self._begin_of_turn(messages)
            for message, _ in found[begin:]:
                last = self._messages.keep(message, self.id, made_here=first > 0)
            if last is not None and _answers(last.message):
                return last
        for text in answer_texts(self._outputs):
            for one in reversed(self._messages.all):
                if _answers(one.message) and str(one.message.text).strip() == text.strip():
                    return one
        return None

    def _begin_of_turn(self, messages: Sequence[BaseMessage]) -> int:
        """Return where the turn begins in the state of a run in which no model was asked."""
        humans = [place for place, one in enumerate(messages) if one.type == "human"]
        asked = [place for place in humans if str(messages[place].text) == self.task]
        begin = (asked or humans or [0])[-1]
        self._history = [message.model_copy() for message in messages[:begin]]
        return begin

    def _is_repeated(self, message: BaseMessage, run_id: UUID) -> bool:
        """Return whether a run passes on an answer that is known, as of a model that it called."""
        known = self._messages.by_id.get(message.id) if message.id else None
        if known is not None and key_of(known.message) == key_of(message):
            return True
        if run_id in self.parents.values():
            for one in self._messages.with_content_of(message):
                if one.run_id != run_id and self._is_within(one.run_id, run_id):
                    self._messages.learn_id(one, message)
                    return True
        return False

    def _is_within(self, run_id: UUID, ancestor: UUID) -> bool:
        current: UUID | None = run_id
        while current is not None:
            if current == ancestor:
                return True
            current = self.parents.get(current)
        return False


def _answers(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage) and not message.tool_calls and bool(message.text.strip())

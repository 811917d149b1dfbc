"""A run that goes on: its messages, and the trace that they become."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse

from lag_integrations.capture.judges import Judge
from lag_integrations.capture.outcomes import is_cancellation
from lag_integrations.capture.run_metadata import Metadata, in_scope
from lag_integrations.llama_index.capture.messages import (
    NO_ANSWER,
    Key,
    answer_of,
    as_step,
    is_observation,
    is_unreadable,
    key_of,
    log_ids_of,
    message_of,
    sources_of,
    was_cut_off,
)
from lag_integrations.llama_index.message_tag import is_carrier
from lag_integrations.memory.rendering import without_texts
from lag_integrations.traces.conversation import earlier_turns
from lag_integrations.traces.message import Message
from lag_integrations.traces.sources import SOURCES, Source
from lag_integrations.traces.trace import Outcome, Trace

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory

_MIN_RECALLED_TEXT = 20
"""Characters: what is shorter could as well be a user's own word."""


@dataclass(eq=False)
class _Entry:
    """A message of the run.

    Attributes:
        step: The message.
        made_here: Whether a model of this run wrote it, rather than being shown it.
        cut_off: Whether it ended at the limit of its length.
        unreadable: Whether it holds a call that cannot be read.
    """

    step: Message
    made_here: bool = False
    cut_off: bool = False
    unreadable: bool = False


@dataclass(eq=False)
class Call:
    """A model call that goes on.

    Attributes:
        by: The method that was called, with its class.
        model: Identity of the model.
        prompt: What it was given, message by message; a message that was known has no step.
        run: Whose it is.
        counts: False for a call that a model makes to answer another one.
        streams: Whether its answer is read after the method returned.
        so_far: What was streamed last.
    """

    by: str
    model: int
    prompt: Sequence[tuple[Key, Message | None]]
    run: Run
    counts: bool = True
    streams: bool = False
    so_far: ChatResponse | CompletionResponse | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return the keys of the prompt but its instructions, which may change between calls."""
        return tuple(key for key, _ in self.prompt if not _is_system(key))


@dataclass(frozen=True)
class Receiver:
    """How a memory wants a run.

    Attributes:
        judge: Says whether the run is a success.
        metadata: Metadata of its log.
    """

    judge: Judge | None
    metadata: Metadata


class Run:
    """Collects what one run, and all that it calls, say and do. Not thread safe.

    Args:
        id: Its id.
        name: Its name.
        task: What it was asked, where that is known.
        metadata: What its ``instrument_tags`` say of it.
        resumed: Whether it goes on with a run that was put away.
    """

    def __init__(
        self,
        id: str,
        name: str,
        task: str | None,
        metadata: Metadata | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        self.id = id
        self.name = name
        self.task = task
        self.resumed = resumed
        self.thread: str | None = None
        self.metadata = dict(metadata or {})
        self.receivers: dict[LogMemory, Receiver] = {}  # where its trace goes
        self.pending: set[Any] = set()  # calls, streams: without them it has not ended
        self.ended = False
        self.over = False  # nothing can be added any more
        self.error: BaseException | None = None
        self.abandoned = False
        self.answer: str | None = None  # the run's own
        self.sources: list[Source] = []
        self.touched = time.monotonic()
        self._started_at = datetime.now(timezone.utc)
        self._entries: list[_Entry] = []
        self._known: Counter[Key] = Counter()  # how often a prompt may hold what was said
        self._answered: dict[tuple[Key, ...], Key] = {}  # calls, by their whole prompt
        self._task_message: Message | None = None
        self._earlier: list[Message] = []  # what was said before the task
        self._call_ids: set[str] = set()  # ids of tool calls
        self._unseen_results: list[Message] = []  # tools' results that stood in no prompt yet
        self._helped_by: dict[str, None] = {}
        self._recalled: dict[str, str] = {}

    def begin_call(self, by: str, model: int, messages: Sequence[ChatMessage]) -> Call:
        """Begin a model call. Its messages are added when it ends: others go on meanwhile."""
        seen: Counter[Key] = Counter()
        prompt: list[tuple[Key, Message | None]] = []
        for message in messages:
            if is_carrier(message):
                continue
            key = key_of(message)
            seen[key] += 1
            # Read now, since agents change messages later.
            prompt.append((key, as_step(message) if seen[key] > self._known[key] else None))
        return Call(by, model, prompt, self)

    def end_call(self, call: Call, response: ChatResponse | CompletionResponse | None) -> None:
        """End a call: add its prompt and its response, if there is one."""
        self._add_prompt(call)
        if response is None:
            return
        for log_id in log_ids_of(response):
            self._helped_by[log_id] = None
        message = message_of(response)
        key, step = key_of(message), as_step(message)
        self._answered[call.keys] = key
        if not step.is_empty:
            self._known[key] += 1
            self._call_ids.update(each.id for each in step.tool_calls if each.id)
            self._entries.append(
                _Entry(
                    step,
                    made_here=True,
                    cut_off=was_cut_off(response),
                    unreadable=is_unreadable(message),
                )
            )

    def add_tool_result(self, step: Message) -> None:
        """Add a tool's result, which the model may see in the next call, or never."""
        if step.tool_call_id not in self._call_ids:  # an agent made it up
            step = step.model_copy(update={"tool_call_id": None})
        self._unseen_results.append(step)

    def add_retrieved(self, texts: Mapping[str, str]) -> None:
        """Note the ids of logs that a retriever found, by their text."""
        self._helped_by.update(dict.fromkeys(texts.values()))
        self.add_recalled(
            {text: key for text, key in texts.items() if len(text) >= _MIN_RECALLED_TEXT}
        )

    def add_recalled(self, texts: Mapping[str, str]) -> None:
        """Note that texts of logs were put into a prompt: they are no messages of this run."""
        self._helped_by.update(dict.fromkeys(texts.values()))
        self._recalled.update(texts)

    def end(
        self,
        result: Any = None,
        error: BaseException | None = None,
        retrieved: Collection[Source] = (),
    ) -> None:
        """Take note that its method returned; the answer may still be streamed.

        Args:
            result: What it returned.
            error: Why it failed.
            retrieved: What was retrieved in it.
        """
        self.ended = True
        self.answer = answer_of(result)
        # As they were retrieved: a postprocessor may change what is shown of them.
        found = {source.id: source for source in retrieved}
        self.sources = [
            replace(found.get(source.id, source), score=source.score)
            for source in sources_of(result) or found.values()
        ]
        if error is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Note that it ends with an error, or that nobody waits for it any more."""
        if is_cancellation(error):
            self.abandoned = True
        elif self.error is None:
            self.error = error

    @property
    def is_done(self) -> bool:
        """Return whether nothing can follow, or nothing that counts."""
        return self.ended and (not self.pending or self.error is not None)

    @property
    def has_answer(self) -> bool:
        """Return whether a model answered in it, and the run has an answer."""
        return self.answer != NO_ANSWER and any(entry.made_here for entry in self._entries)

    def trace(self, extra_metadata: Metadata) -> Trace:
        """Return the trace of the run, once it is done.

        Args:
            extra_metadata: Further metadata; it wins over that of the run.

        Raises:
            TraceError: Nothing was said.
        """
        final = self._final()
        shown = [
            *(entry.step for entry in self._entries if entry is not final),
            *self._unseen_results,
        ]
        steps = [without_texts(step, self._recalled) for step in shown]
        if final is not None:  # the run's own answer, whatever was said after it
            steps.append(final.step)
        metadata = in_scope({**self.metadata, **extra_metadata})
        metadata |= {"source": "llama_index", "run_name": self.name}
        if self.thread is not None:
            metadata["thread_id"] = self.thread
        if self.sources:
            metadata[SOURCES] = [source.to_json() for source in self.sources]
        if self.error is not None:
            metadata["error"] = type(self.error).__name__
        elif self.abandoned:
            metadata["abandoned"] = True
        return Trace.from_messages(
            steps,
            task=self.task or self._question,
            earlier=earlier_turns([without_texts(step, self._recalled) for step in self._earlier]),
            outcome=self._outcome(final),
            id=self.id,
            started_at=self._started_at,
            ended_at=datetime.now(timezone.utc),
            helped_by=tuple(self._helped_by),
            metadata=metadata,
        )

    @property
    def _question(self) -> str | None:
        message = self._task_message
        return None if message is None else without_texts(message, self._recalled).text

    def _outcome(self, final: _Entry | None) -> Outcome:
        if self.error is not None:
            return "failure"
        if self.abandoned:
            return "incomplete"
        last = final or next((entry for entry in reversed(self._entries) if entry.made_here), None)
        if last is None:
            return "success"
        if last.cut_off:  # maybe in the midst of a call
            return "incomplete"
        return "failure" if last.unreadable else "success"

    def _final(self) -> _Entry | None:
        """Return what the run answered with; None if its result does not tell."""
        text = (self.answer or "").strip()
        if not text:
            return None
        answers = [
            entry
            for entry in reversed(self._entries)
            if entry.made_here and (entry.unreadable or not entry.step.tool_calls)
        ]
        for entry in answers:
            if entry.step.text.strip() == text:
                return entry
        if answers and answers[0].step.text.strip().endswith(text):  # after "Answer:", for instance
            return answers[0]
        return _Entry(Message(role="assistant", content=text))

    def _add_prompt(self, call: Call) -> None:
        """Add the messages of a call's prompt that are new.

        A prompt repeats the conversation so far. A message is known by its content, and as often
        as it was said. Messages before the one that asks the task are earlier turns.
        """
        users = [step for _, step in call.prompt if step and step.role == "user"]
        if self._task_message is None and users:
            asked = [step for step in users if not is_observation(step.text)]
            self._task_message = (asked or users)[-1]
            if self.resumed:  # the turns before are its history
                self.task = self.task or self._question
        history = self._history(call.prompt)
        seen: Counter[Key] = Counter()
        new: list[Message] = []
        for place, (key, step) in enumerate(call.prompt):
            seen[key] += 1
            if seen[key] <= self._known[key] or step is None:
                continue
            self._known[key] += 1
            if place < history and step.role != "system":
                self._earlier.append(step)
                continue
            if step.role == "assistant" and self._is_rewritten(call.prompt[:place]):
                continue
            if self._is_repeated(step, call.prompt[place + 1 :]):
                continue
            self._forget_results_in(step)
            new.append(step)
        # Results follow their calls, also where another agent takes over with its instructions.
        call_at = next((at for at, step in enumerate(new) if step.role == "assistant"), len(new))
        new[:call_at] = sorted(new[:call_at], key=lambda step: step.role != "tool")
        self._entries += [_Entry(step) for step in new]

    def _history(self, prompt: Sequence[tuple[Key, Message | None]]) -> int:
        """Return how many messages stand before the one that asks the task."""
        task = (self.task or self._question or "").strip()
        if not task:
            return 0
        for place in range(len(prompt) - 1, -1, -1):
            role, text = prompt[place][0][:2]
            # An agent may put its state, or what was recalled, around it.
            if role == "user" and (text.strip().endswith(task) or text.startswith(task)):
                return place
        return 0

    def _is_repeated(self, step: Message, after: Sequence[tuple[Key, Message | None]]) -> bool:
        """Return whether a message repeats the task: with an agent's state, or in a second try."""
        task = (self.task or "").strip()
        if step.role != "user" or not task or step.text.strip() != task:
            return False
        goes_on = bool(after) and self._known[after[0][0]] > 0
        return any(
            entry.step.role == "user"
            and (entry.step.text.strip() == task or (goes_on and task in entry.step.text))
            for entry in self._entries
        )

    def _is_rewritten(self, before: Sequence[tuple[Key, Message | None]]) -> bool:
        """Return whether a message is a model's answer in an agent's words, such as a ReAct step.

        It then stands where the answer to an earlier call has to stand.
        """
        return tuple(key for key, _ in before if not _is_system(key)) in self._answered

    def _forget_results_in(self, step: Message) -> None:
        """Forget the tools' results that a message holds: they are no longer unseen."""
        if step.role in ("tool", "user"):
            self._unseen_results = [
                result for result in self._unseen_results if not _holds(step, result)
            ]


def _holds(step: Message, result: Message) -> bool:
    if step.tool_call_id and result.tool_call_id:
        return step.tool_call_id == result.tool_call_id
    return result.text.strip() in step.text


def _is_system(key: Key) -> bool:
    return bool(key[0] == "system")

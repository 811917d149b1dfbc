"""The arms of the paper's evaluation: in which form a model gets the logs that were recalled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.log_texts import with_texts
from lag_integrations.engine.token_selection import (
    LastAction,
    LastResponse,
    LastResponses,
    LastTurn,
    Selection,
    WholeTrace,
    WithoutContext,
)
from lag_integrations.errors import EvaluationError
from lag_integrations.evaluation.questions import Question
from lag_integrations.kv.segment import Segment
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace


@dataclass(frozen=True)
class Asked:
    """What a model is about to be asked.

    Attributes:
        engine: The model.
        memory: Where its segments are.
        question: The question, before whose line logs stand.
        chat: The conversation without logs.
        max_tokens: Most tokens that the model may write.
    """

    engine: Engine
    memory: KVLogMemory
    question: Question
    chat: Sequence[Message]
    max_tokens: int


@dataclass(frozen=True)
class Given:
    """A prompt with logs.

    Attributes:
        chat: The conversation, with logs that are text.
        segments: Segments to inject, in the order in which the model shall see them.
        stored_bytes: Bytes that the logs take in the store, in this form.
        computed_tokens: Tokens that were read to make this.
        generated_tokens: Tokens that were generated to make this.
        as_text: Whether the segments' tokens are read like any text, instead of being injected.
    """

    chat: Sequence[Message]
    segments: Sequence[Segment] = ()
    stored_bytes: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    as_text: bool = False


class Arm(ABC):
    """A form of logs.

    Attributes:
        selection: What of a trace is made a segment; what the model's memory keeps by default
            if None.
        uses_logs: Whether logs are recalled at all.
        uses_segments: Whether segments are made of them.
        uses_lessons: Whether the logs are lessons that the model distilled from those of the
            others.
        uses_steps: Whether only the step of each log is given that is nearest to the query.
        as_shipped: Whether of logs about other cases only what led to the answer is given.
    """

    selection: Selection | None = None
    uses_logs = True
    uses_segments = False
    uses_lessons = False
    uses_steps = False
    as_shipped = False

    @abstractmethod
    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Give the model recalled logs.

        Args:
            asked: What it is asked.
            logs: The logs; the first is to stand last, nearest to the question.
        """


class NoLogs(Arm):
    """The standard agent."""

    uses_logs = False

    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Return the conversation as it is."""
        return Given(asked.chat)


class AsSegments(Arm):
    """KV of what a selection keeps.

    Args:
        selection: What is kept; by default what the model's memory keeps.
    """

    uses_segments = True

    def __init__(self, selection: Selection | None = None) -> None:
        self.selection = selection
        self.as_shipped = selection is None

    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Return the conversation, with segments to inject."""
        segments = asked.memory.segments(logs, asked.engine)[::-1]
        return Given(asked.chat, segments, sum(segment.nbytes for segment in segments))


class LessonsAsSegments(AsSegments):
    """KV of lessons, encoded in the context of what they were made of."""

    uses_lessons = True


class StepsAsSegments(AsSegments):
    """KV of steps, encoded in the context of their runs."""

    uses_steps = True


class TokensAsText(AsSegments):
    """What a selection keeps, token by token, read by the model instead of injected."""

    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Return the conversation, with segments whose tokens are to be read."""
        given = super().give(asked, logs)
        texts = [asked.engine.tokenizer.decode(one.token_ids) for one in given.segments]
        return replace(given, stored_bytes=_bytes(texts), as_text=True)


class AsText(Arm):
    """The last response, or the whole trace, as text.

    Args:
        whole: Whether all of the trace is given.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole

    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Return the conversation, with the logs' text in it."""
        texts = [whole_text(log.trace) if self._whole else log.text for log in logs]
        chat = with_texts(asked.chat, texts[::-1], asked.question.text)
        return Given(chat, stored_bytes=_bytes(texts))


class LessonsAsText(AsText):
    """Lessons, as text."""

    uses_lessons = True


class StepsAsText(AsText):
    """Steps, as text."""

    uses_steps = True


class Cheatsheet(Arm):
    """What the model itself writes down of the logs, as text (Dynamic Cheatsheet)."""

    def give(self, asked: Asked, logs: Sequence[RecalledLog]) -> Given:
        """Return the conversation, with the cheatsheet in it."""
        if not logs:
            return Given(asked.chat)
        solved = "\n\n".join(
            f"Question: {log.trace.task}\nResponse: {log.trace.last_response}" for log in logs[::-1]
        )
        task = Message(
            role="user",
            content="These questions were worked on before:\n\n"
            f"{solved}\n\nWrite a short cheatsheet for the next question: the facts, insights and "
            f"ways of solving that help with it, nothing else.\n\nNext question: "
            + "\n".join(filter(None, (asked.question.text, asked.question.lettered))),
        )
        sheet = asked.engine.generate([task], max_new_tokens=asked.max_tokens, do_sample=False)
        return Given(
            with_texts(asked.chat, [sheet.text.strip()], asked.question.text),
            stored_bytes=_bytes([log.trace.last_response for log in logs]),
            computed_tokens=sheet.prompt_tokens - sheet.reused_tokens,
            generated_tokens=len(sheet.token_ids),
        )


def whole_text(trace: Trace) -> str:
    """Return all that was said, with the task."""
    return "\n".join(message.text for message in trace.messages if message.text.strip())


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


ARMS: dict[str, Arm] = {
    "none": NoLogs(),
    "text_last": AsText(),
    "text_all": AsText(whole=True),
    "text_tokens": TokensAsText(),
    "kv": AsSegments(),
    "kv_last": AsSegments(LastTurn()),
    "kv_last_response": AsSegments(LastResponse()),
    "kv_last_action": AsSegments(LastAction()),
    "kv_last_n": AsSegments(LastResponses(2)),
    "kv_all": AsSegments(WholeTrace()),
    "kv_no_context": AsSegments(WithoutContext(LastTurn())),
    "cheatsheet": Cheatsheet(),
    "lessons_text": LessonsAsText(),
    "lessons_kv": LessonsAsSegments(),
    "steps_text": StepsAsText(),
    "steps_kv": StepsAsSegments(),
}
"""All arms of the paper, and seven more.

`kv` is what `KVLogMemory` keeps by default, or as the model was calibrated; `text_tokens` passes
the very tokens of `kv`, at the same place, as text; `kv_last` keeps the last response with the
header and the end of its turn; the last four give lessons (`memory.learn`) and steps. What the
paper calls `kv_last`, the text of the last response alone, is `kv_last_response`.
"""


def arm(name: str) -> Arm:
    """Return the arm of a name.

    Raises:
        EvaluationError: There is none.
    """
    if name not in ARMS:
        raise EvaluationError(f"There is no arm {name!r}; known are {', '.join(ARMS)}.")
    return ARMS[name]

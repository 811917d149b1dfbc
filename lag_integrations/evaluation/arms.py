"""The arms of the paper's evaluation: in which form a model gets the logs that were recalled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from lag_integrations.engine import Engine
from lag_integrations.errors import EvaluationError
from lag_integrations.injection import with_texts
from lag_integrations.kv.segment import Segment
from lag_integrations.kv.selection import (
    LastAction,
    LastResponse,
    LastResponses,
    LastTurn,
    Selection,
    WholeTrace,
    WithoutContext,
)
from lag_integrations.memory import KVLogMemory, RecalledLog
from lag_integrations.trace import Message, Trace


@dataclass(frozen=True)
class Given:
    """A prompt with logs.

    Attributes:
        chat: The conversation, with logs that are text.
        segments: Segments to inject, in the order in which the model shall see them.
        stored_bytes: Bytes that the logs take in the store, in this form.
        generated_tokens: Tokens that were generated to make this.
    """

    chat: Sequence[Message]
    segments: Sequence[Segment] = ()
    stored_bytes: int = 0
    generated_tokens: int = 0


class Arm(ABC):
    """A form of logs.

    Attributes:
        selection: What of a trace is made a segment, where segments are used.
        uses_logs: Whether logs are recalled at all.
    """

    selection: Selection | None = None
    uses_logs = True

    @abstractmethod
    def give(
        self,
        engine: Engine,
        memory: KVLogMemory,
        logs: Sequence[RecalledLog],
        chat: Sequence[Message],
        question: str,
    ) -> Given:
        """Give the model recalled logs.

        Args:
            engine: The model.
            memory: Where its segments are.
            logs: The logs, most relevant first; the most relevant is to stand last.
            chat: The conversation without logs.
            question: The words of the question, before whose line logs stand.
        """


class NoLogs(Arm):
    """The standard agent."""

    uses_logs = False

    def give(
        self,
        engine: Engine,
        memory: KVLogMemory,
        logs: Sequence[RecalledLog],
        chat: Sequence[Message],
        question: str,
    ) -> Given:
        """The conversation as it is."""
        return Given(chat)


class AsSegments(Arm):
    """KV of what a selection keeps.

    Args:
        selection: What is kept.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection

    def give(
        self,
        engine: Engine,
        memory: KVLogMemory,
        logs: Sequence[RecalledLog],
        chat: Sequence[Message],
        question: str,
    ) -> Given:
        """The conversation, with segments to inject."""
        segments = memory.segments(logs, engine)[::-1]
        return Given(chat, segments, sum(segment.nbytes for segment in segments))


class AsText(Arm):
    """The last response, or all responses, as text.

    Args:
        whole: Whether all that the model said is given.
    """

    def __init__(self, *, whole: bool = False) -> None:
        self._whole = whole

    def give(
        self,
        engine: Engine,
        memory: KVLogMemory,
        logs: Sequence[RecalledLog],
        chat: Sequence[Message],
        question: str,
    ) -> Given:
        """The conversation, with the logs' text in it."""
        texts = [whole_text(log.log) if self._whole else log.log.last_response for log in logs]
        return Given(with_texts(chat, texts[::-1], question), stored_bytes=_bytes(texts))


class Cheatsheet(Arm):
    """What the model itself writes down of the logs, as text (Dynamic Cheatsheet).

    Args:
        max_tokens: Most tokens of the cheatsheet.
    """

    def __init__(self, max_tokens: int = 128) -> None:
        self._max_tokens = max_tokens

    def give(
        self,
        engine: Engine,
        memory: KVLogMemory,
        logs: Sequence[RecalledLog],
        chat: Sequence[Message],
        question: str,
    ) -> Given:
        """The conversation, with the cheatsheet in it."""
        if not logs:
            return Given(chat)
        solved = "\n\n".join(
            f"Question: {log.log.task}\nResponse: {log.log.last_response}" for log in logs[::-1]
        )
        asked = Message(
            role="user",
            content="These questions were worked on before:\n\n"
            f"{solved}\n\nWrite a short cheatsheet for the next question: the facts, insights and "
            f"ways of solving that help with it, nothing else.\n\nNext question: {question}",
        )
        sheet = engine.generate([asked], max_new_tokens=self._max_tokens, do_sample=False)
        return Given(
            with_texts(chat, [sheet.text.strip()], question),
            stored_bytes=_bytes([log.log.last_response for log in logs]),
            generated_tokens=len(sheet.token_ids),
        )


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def whole_text(trace: Trace) -> str:
    """All that was said after the task."""
    return "\n".join(message.text for message in trace.messages[1:] if message.text.strip())


ARMS: dict[str, Arm] = {
    "none": NoLogs(),
    "text_last": AsText(),
    "text_all": AsText(whole=True),
    "kv_last": AsSegments(LastTurn()),
    "kv_last_response": AsSegments(LastResponse()),
    "kv_last_action": AsSegments(LastAction()),
    "kv_last_n": AsSegments(LastResponses(2)),
    "kv_all": AsSegments(WholeTrace()),
    "kv_no_context": AsSegments(WithoutContext(LastTurn())),
    "cheatsheet": Cheatsheet(),
}
"""All arms of the paper, by their names there. `kv_last` keeps the response with the header and the
end of its turn, as `KVLogMemory` does; `kv_last_response`, like the paper, its text alone."""


def arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        EvaluationError: There is none.
    """
    if name not in ARMS:
        raise EvaluationError(f"There is no arm {name!r}; known are {', '.join(ARMS)}.")
    return ARMS[name]

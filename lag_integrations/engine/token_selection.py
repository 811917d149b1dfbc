"""Which tokens of a rendered trace are kept: one small class a rule."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from lag_integrations.engine.rendered import RenderedPrompt, Span
from lag_integrations.errors import TraceError


class Selection(ABC):
    """A rule that picks tokens of a trace."""

    in_context = True
    """Whether the kept tokens are encoded with the whole trace before them."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name under which segments of this selection are stored."""

    @abstractmethod
    def keep(self, rendered: RenderedPrompt) -> list[int]:
        """Return the indices of the kept tokens in ``rendered.token_ids``, ascending.

        Raises:
            TraceError: The trace has nothing that this rule keeps.
        """


@dataclass(frozen=True)
class LastResponses(Selection):
    """The last n assistant responses (paper: ``kv_last_n``).

    The text of the responses alone, as in the paper: neither the headers nor the ends of their
    turns.

    Attributes:
        n: Number of responses; fewer are kept where the trace has fewer.
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n is {self.n}; keep at least one response.")

    @property
    def name(self) -> str:
        return f"last_{self.n}_responses"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        spans = _responses(rendered)[-self.n :]
        return [token for span in spans for token in range(span.content_start, span.content_end)]


@dataclass(frozen=True)
class LastResponse(Selection):
    """The last assistant response (paper: ``kv_last``)."""

    @property
    def name(self) -> str:
        return "last_response"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        return LastResponses(1).keep(rendered)


@dataclass(frozen=True)
class LastTurn(Selection):
    """The last assistant response with the header and the end of its turn.

    The markers tell the model where the response begins and ends when several stand side by side
    (docs/evaluation.md).
    """

    @property
    def name(self) -> str:
        return "last_turn"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        span = _responses(rendered)[-1]
        return list(range(span.start, span.end))


@dataclass(frozen=True)
class LastAction(Selection):
    """The action of the last response only (paper: ``kv_last_action``).

    That is its ``<ans>``, else its ``<keywords>``, else its ``<subquestion>``; else its last line
    that starts with ``Action`` (ReAct); else the whole content.
    """

    @property
    def name(self) -> str:
        return "last_action"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        span = _responses(rendered)[-1]
        begin, end = span.characters
        content = rendered.text[begin:end]
        for pattern in (
            r"<ans>.*?(</ans>|\Z)",
            r"<keywords>.*?(</keywords>|\Z)",
            r"<subquestion>.*?(</subquestion>|\Z)",
            r"^Action\b[^\n]*",
        ):
            matches = list(re.finditer(pattern, content, re.DOTALL | re.MULTILINE))
            if matches:
                start, stop = (begin + place for place in matches[-1].span())
                return list(rendered.tokens(start, stop))
        return list(range(span.content_start, span.content_end))


@dataclass(frozen=True)
class WholeTrace(Selection):
    """Every turn after the system message (paper: ``kv_all``)."""

    @property
    def name(self) -> str:
        return "whole_trace"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        _responses(rendered)
        return list(range(rendered.head, len(rendered.token_ids)))


@dataclass(frozen=True)
class TaskAndLastTurns(Selection):
    """The whole trace after the system message, or what of it matters most; the default.

    The task is kept with the answer, so that the model can tell an old case from the new one: with
    the last turn alone it repeats the old answer. What stood in between is kept as far as there is
    room, since questions ask for it, too (docs/evaluation.md).

    Attributes:
        max_tokens: Tokens to keep at most. Of a longer trace, the first user turn is kept if it
            takes a quarter of them at most, and as many of the last turns as there is room for,
            but always the last one.
    """

    max_tokens: int = 512

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; keep at least one token.")

    @property
    def name(self) -> str:
        return f"task_and_last_turns_{self.max_tokens}"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        last = _responses(rendered)[-1]
        if last.end - rendered.head <= self.max_tokens:
            return list(range(rendered.head, last.end))
        task = next((span for span in rendered.spans if span.role == "user"), None)
        kept = range(0) if task is None else range(task.start, task.end)
        if len(kept) > self.max_tokens // 4:
            kept = range(0)
        starts = [span.start for span in rendered.spans if kept.stop <= span.start <= last.start]
        room = self.max_tokens - len(kept)
        begin = next(start for start in starts if last.end - start <= room or start == last.start)
        return [*kept, *range(begin, last.end)]


@dataclass(frozen=True)
class WithoutContext(Selection):
    """What another rule keeps, but encoded alone (paper's baseline, as in Block-Attention).

    Attributes:
        inner: The rule that picks the tokens.
    """

    inner: Selection

    in_context = False

    @property
    def name(self) -> str:
        return f"{self.inner.name}_without_context"

    def keep(self, rendered: RenderedPrompt) -> list[int]:
        return self.inner.keep(rendered)


def _responses(rendered: RenderedPrompt) -> list[Span]:
    spans = rendered.responses
    if not spans:
        raise TraceError(
            "The trace has no assistant response, so there is no computation to keep; "
            "capture runs in which the model answered."
        )
    return spans

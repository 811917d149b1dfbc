"""A conversation as tokens, and where each of its messages stands among them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

from lag_integrations.engine.log_texts import line_of
from lag_integrations.traces.message import Role


@dataclass(frozen=True)
class Span:
    """Where one message stands in rendered tokens.

    Attributes:
        role: Role of the message.
        start: First token, of its header.
        content_start: First token of its content.
        content_end: After the last token of its content.
        end: After its last token, the end-of-turn included.
        characters: Where its content stands in the rendered text.
        messages: How many messages there are up to its end; some may have been merged into it.
    """

    role: Role
    start: int
    content_start: int
    content_end: int
    end: int
    characters: tuple[int, int]
    messages: int


@dataclass(frozen=True)
class RenderedPrompt:
    """Messages as tokens.

    Attributes:
        text: The rendered text.
        token_ids: Its tokens.
        starts: For each token, the character it begins at.
        spans: One a message whose content the template shows.
    """

    text: str
    token_ids: list[int]
    starts: list[int]
    spans: tuple[Span, ...]

    def tokens(self, begin: int, end: int) -> range:
        """Return the tokens that hold any of the characters from ``begin`` up to ``end``."""
        first = bisect_left(self.starts, begin)
        if first == len(self.starts) or self.starts[first] > begin:
            # A token that begins earlier reaches into it (characters of several tokens share one
            # start, so the first of them is meant).
            first = bisect_left(self.starts, self.starts[max(0, first - 1)])
        return range(first, max(first, bisect_left(self.starts, end)) if end > begin else first)

    def after(self, spans: int) -> RenderedPrompt:
        """Return the same tokens, of which only those after the first spans are messages."""
        return replace(self, spans=self.spans[spans:])

    @property
    def head(self) -> int:
        """Number of tokens before the first message that is not a system message."""
        for span in self.spans:
            if span.role != "system":
                return span.start
        return self.spans[-1].end if self.spans else 0

    @property
    def responses(self) -> list[Span]:
        """The assistant's turns that say something."""
        return [
            span
            for span in self.spans
            if span.role == "assistant" and span.content_end > span.content_start
        ]

    @property
    def last_turn(self) -> int:
        """Number of tokens before the last user turn, its header included."""
        starts = [span.start for span in self.spans if span.role == "user"]
        return starts[-1] if starts else self.head

    def question(self, words: str | None = None) -> int:
        """Number of tokens before the question.

        Args:
            words: What was asked, where the last user message holds more than that, as documents:
                the line with these words is the question, if it is there. By default it is the
                whole message.
        """
        users = [span for span in self.spans if span.role == "user"]
        if not users:
            return self.head
        begin, end = users[-1].characters
        place = line_of(words, self.text[begin:end])
        return self.tokens(begin + place, end).start if place else users[-1].content_start

"""Traces made ready for the model to encode: their tokens, and which of them are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lag_integrations.engine.chat_template import ChatTemplate
from lag_integrations.engine.rendered import RenderedPrompt
from lag_integrations.engine.token_selection import Selection
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)

_MOST_HELD = 8192
"""Tokens of keys and values of a batch."""


@dataclass(frozen=True)
class Encodable:
    """A trace as the model is to read it.

    Attributes:
        token_ids: What is read, no more than the model's window.
        keep: Indices of the tokens that become the segment, ascending.
        head: Tokens before the first message that is not a system message.
        info: Facts to store with the segment.
        background: How many of the kept tokens stand before the last response, see `Segment`.
        cache_salt: Whose trace it is, see `generation.row.Request`.
        cut: The tokens that were cut out of the rendered trace.
    """

    token_ids: list[int]
    keep: list[int]
    head: int
    info: dict[str, str]
    background: int
    cache_salt: str = ""
    cut: range = range(0)

    def __len__(self) -> int:
        return len(self.token_ids)

    def places(self) -> dict[int, int]:
        """Return where in the segment each kept token of the rendered trace stands.

        A selection that encodes without context has no such places.
        """
        whole = (index + len(self.cut) * (index >= self.cut.start) for index in self.keep)
        return {token: place for place, token in enumerate(whole)}

    @classmethod
    def of(cls, trace: Trace, selection: Selection, format: ChatTemplate, window: int) -> Encodable:
        """Render a trace, and select of it.

        What is longer than the window is cut: the oldest tokens after the system message go.

        Raises:
            TraceError: The trace holds nothing that the selection keeps.
            PromptError: The chat template refuses the trace.
        """
        rendered, system = _rendered(trace, format)
        token_ids, keep = rendered.token_ids, selection.keep(rendered)
        last = rendered.responses[-1].start if rendered.responses else 0
        background = sum(index < last for index in keep)
        if not selection.in_context:
            token_ids, keep = [token_ids[index] for index in keep], list(range(len(keep)))
        head = system if selection.in_context else 0
        cut = max(0, len(token_ids) - window)
        gone = range(0)
        if cut:
            head = min(head, window // 2)
            token_ids = token_ids[:head] + token_ids[head + cut :]
            gone = range(head, head + cut)
            background -= sum(index in gone for index in keep[:background])
            keep = [
                index if index < head else index - cut
                for index in keep
                if index < head or index >= head + cut
            ]
            logger.warning(
                "A trace is %d tokens longer than the model's window of %d; its oldest tokens "
                "after the system message were cut (trace %s).",
                cut,
                window,
                trace.id,
            )
        info = {"selection": selection.name, "cut_tokens": str(cut)}
        return cls(token_ids, keep, head, info, background, cut=gone)


def rendered_messages(trace: Trace) -> list[Message]:
    """Return what is rendered of a trace: its messages, behind its earlier turns."""
    if not trace.earlier:
        return list(trace.messages)
    system = [message for message in trace.messages if message.role == "system"]
    others = [message for message in trace.messages if message.role != "system"]
    return [*system, *trace.earlier, *others]


def _rendered(trace: Trace, format: ChatTemplate) -> tuple[RenderedPrompt, int]:
    """Render a trace behind its earlier turns, which count as no messages, and find their begin."""
    rendered = format.render(rendered_messages(trace), generate=False)
    if not trace.earlier:
        return rendered, rendered.head
    before = [*(one for one in trace.messages if one.role == "system"), *trace.earlier]
    spans = format.render(before, generate=False).spans
    return rendered.after(len(spans)), rendered.head


def batches(unread: Sequence[int], known: int, most: int) -> Iterator[list[int]]:
    """Yield indices of what is encoded together: of like length; the longest come alone.

    Args:
        unread: Tokens of each that are to be read.
        known: Tokens before these, which each row of a batch holds, too.
        most: Tokens that are read together, padding included.
    """
    batch: list[int] = []
    for index in sorted(range(len(unread)), key=unread.__getitem__):
        rows, tokens = len(batch) + 1, unread[index]
        if batch and (rows * tokens > most or rows * (known + tokens) > _MOST_HELD):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch

"""Who captures what: ``with capture(…)`` blocks, and ``instrument`` for the whole process."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lag_integrations.llama_index.capture.run import Receiver
from lag_integrations.llama_index.capture.spans import Span

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory


@dataclass(frozen=True, eq=False)
class Block:
    """A ``with capture(…)`` block, or what ``instrument`` captures.

    Attributes:
        memory: Where the runs go that begin in it.
        receiver: Their judge and metadata.
        within: The span in which it was entered.
        need: Keeps LlamaIndex instrumented: tasks that were started in it may begin after its end.
    """

    memory: LogMemory
    receiver: Receiver
    within: str | None
    need: object


current_block: ContextVar[Block | None] = ContextVar("lag_capture_block", default=None)
"""The innermost block of this thread or task."""


class Blocks:
    """The blocks of this process. Not thread safe."""

    def __init__(self) -> None:
        self.everywhere: list[Block] = []

    def that_open(self, span: Span) -> list[Block]:
        """Return the blocks that open a run at a span which begins."""
        block = current_block.get()
        if block is None:
            is_root = span.parent is None and not span.muted
            return list(self.everywhere) if is_root else []
        entered_here = False
        for each in span.upwards():
            if each.muted:
                return []
            entered_here = entered_here or each.id == block.within
            if each.run is not None:
                takes_over = entered_here and block.memory not in each.run.receivers
                return [block] if takes_over else []
        return [block]

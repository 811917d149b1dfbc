"""Captures whole LlamaIndex runs as traces, off the hot path and without ever raising."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_index_instrumentation.span import active_span_id

from lag_integrations.capture.judges import Judge, judges_of
from lag_integrations.capture.run_metadata import Metadata, checked_metadata
from lag_integrations.llama_index.capture.blocks import Block, current_block
from lag_integrations.llama_index.capture.handlers import instrumentation, tracker
from lag_integrations.llama_index.capture.run import Receiver

if TYPE_CHECKING:
    from lag_integrations.memory.memory import LogMemory


class Capture:
    """Runs that are captured into a memory.

    Args:
        memory: Where their traces go.
        block: What `stop` ends.
    """

    def __init__(self, memory: LogMemory, block: Block | None = None) -> None:
        self._memory = memory
        self._block = block

    def wait_for_judge(self) -> None:
        """Wait until every run that ended so far is judged, before the memory is closed."""
        tracker.recorder.wait()
        judges_of(self._memory).wait()

    def stop(self) -> None:
        """Capture no run that begins from now on; for `instrument`."""
        if self._block is not None:
            tracker.stop_capturing(self._block)
            self._block = None
        tracker.recorder.wait()


@contextmanager
def capture(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Iterator[Capture]:
    """Capture all runs that begin in here; see `KVLogMemory.capture`."""
    token = current_block.set(_block(memory, judge, metadata, within=active_span_id.get()))
    try:
        yield Capture(memory)
    finally:
        current_block.reset(token)
        tracker.recorder.wait()


def instrument(
    memory: LogMemory, judge: Judge | None = None, *, metadata: Metadata | None = None
) -> Capture:
    """Capture all runs of this process; see `KVLogMemory.instrument`."""
    block = _block(memory, judge, metadata, within=None)
    tracker.capture_everywhere(block)
    return Capture(memory, block)


def _block(
    memory: LogMemory, judge: Judge | None, metadata: Metadata | None, *, within: str | None
) -> Block:
    if judge is not None and not callable(judge):
        raise ValueError(f"judge= is a {type(judge).__name__}; it must be callable.")
    receiver = Receiver(judge, checked_metadata(metadata))
    return Block(memory, receiver, within, instrumentation.need())

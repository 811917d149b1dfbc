"""An answer between the loop that writes it and whoever reads it."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty, SimpleQueue

from transformers import DynamicCache

from lag_integrations.engine.generation.sequence import SequenceState
from lag_integrations.engine.prompt_reading import PromptReading
from lag_integrations.errors import LAGError

_AHEAD = 16
"""Pieces of text that an answer is ahead of who reads it, at most."""
_GRACE = 0.05
"""Seconds after its deadline at which who waits for an answer asks for it."""


class Answer:
    """The answer to one request.

    The loop's thread writes it; one thread, or event loop, reads it.

    Args:
        sequence: The answer, still empty.
        started: `time.perf_counter` when the clock of the first token began.
        wake: Has the loop look for work.

    Attributes:
        sequence: As above.
        reading: What was read of its prompt; None before it is its turn.
        wake: As above.
        cancelled: Nobody reads it any more.
        ended: Nothing more is written.
    """

    def __init__(self, sequence: SequenceState, started: float, wake: Callable[[], None]) -> None:
        self.sequence = sequence
        self.reading: PromptReading | None = None
        self.cancelled = False
        self.ended = False
        self._started = started
        self.wake = wake
        self._pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()
        # Each counted by one thread alone.
        self._written = self._read = 0
        self._listener: Callable[[], object] | None = None

    # Of the loop:

    @property
    def cache(self) -> DynamicCache:
        """What was read."""
        assert self.reading is not None
        return self.reading.cache

    @property
    def writing(self) -> bool:
        """Whether the prompt was read, so that tokens come."""
        return bool(self.sequence.pending_tokens)

    @property
    def waits_for_reader(self) -> bool:
        """Whether it is as far ahead of who reads it as it may be."""
        return self._written - self._read >= _AHEAD

    @property
    def patience(self) -> float | None:
        """Seconds after which it is overdue."""
        deadline = self.sequence.request.deadline
        return None if deadline is None else max(0.0, deadline - time.monotonic()) + _GRACE

    @property
    def overdue(self) -> bool:
        """Whether it took longer than its request allows."""
        deadline = self.sequence.request.deadline
        return deadline is not None and time.monotonic() > deadline

    def put(self, piece: str) -> None:
        """Hand over a piece of text."""
        generation = self.sequence.generation
        if not generation.time_to_first_token:
            generation.time_to_first_token = time.perf_counter() - self._started
        if piece:
            self._written += 1
            self._hand_over(piece)

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes."""
        self.ended = True
        self._hand_over(error)

    def _hand_over(self, item: str | BaseException | None) -> None:
        self._pieces.put(item)
        if (listener := self._listener) is not None:
            try:
                listener()
            except RuntimeError:  # its event loop is closed
                self.cancelled = True

    # Of who reads:

    def cancel(self) -> None:
        """Have the loop write no more of it."""
        if not self.ended and not self.cancelled:
            self.cancelled = True
            self.wake()

    def listen(self, listener: Callable[[], object]) -> None:
        """Have a function called, on the loop's thread, when something was handed over."""
        self._listener = listener

    def get(self, *, wait: bool = True) -> str:
        """Return the next piece.

        Args:
            wait: Whether to wait for it.

        Raises:
            StopIteration: There is no more.
            Empty: It is not there yet.
            BaseException: What went wrong.
        """
        try:
            item = self._pieces.get(block=wait, timeout=self.patience if wait else None)
        except Empty:
            if not wait:
                raise
            self.wake()  # which finds that it is overdue, if nothing else is computed
            item = self._pieces.get()
        if isinstance(item, str):
            self._read += 1
            if not self.ended and self._written - self._read <= _AHEAD // 2:
                self.wake()
            return item
        self._pieces.put(None)  # who asks again gets the end
        if item is not None:
            raise item
        raise StopIteration


class EngineStream(Iterator[str], AsyncIterator[str]):
    """Text as it is generated, for ``for`` or ``async for``.

    The model is at most some tokens ahead; it stops when the stream is closed or dropped.

    Attributes:
        generation: The figures, complete after the last piece.
    """

    def __init__(self, answer: Answer) -> None:
        self.generation = answer.sequence.generation
        self._answer = answer
        self._arrived: asyncio.Event | None = None
        weakref.finalize(self, answer.cancel).atexit = False

    def __next__(self) -> str:
        try:
            return self._answer.get()
        except KeyboardInterrupt:
            self.close()
            raise

    async def __anext__(self) -> str:
        if self._arrived is None:
            arrived, loop = asyncio.Event(), asyncio.get_running_loop()
            self._answer.listen(lambda: loop.call_soon_threadsafe(arrived.set))
            self._arrived = arrived
        while True:
            self._arrived.clear()
            try:
                return self._answer.get(wait=False)
            except StopIteration:
                raise StopAsyncIteration from None
            except Empty:
                pass
            try:
                await asyncio.wait_for(self._arrived.wait(), self._answer.patience)
            except asyncio.TimeoutError:
                self._answer.wake()
            except asyncio.CancelledError:
                self.close()
                raise

    def close(self) -> None:
        """Stop here. What was generated stays in `generation`."""
        self._answer.cancel()


def of_other_process() -> LAGError:
    """Return the error of an answer whose process was forked meanwhile."""
    return LAGError(
        "The answer is written in the process that this one was forked from; ask again."
    )

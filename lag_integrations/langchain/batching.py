"""Calls that LangChain makes one by one, answered as one batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar

from lag_integrations.chat.response import ModelResponse
from lag_integrations.engine.engine import Engine


class Table:
    """Where the calls of a batch wait for each other.

    Each call has a seat. When every seat has handed in its question or was left, the questions
    are answered together.

    Args:
        seats: Number of calls.
    """

    def __init__(self, seats: int) -> None:
        self._lock = threading.Lock()
        self._missing = seats
        self._waiting: list[tuple[Engine, ModelResponse, Future[None]]] = []

    def hand_in(self, engine: Engine, answer: ModelResponse) -> Future[None]:
        """Hand in a question; whoever is last answers them all, before this returns."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((engine, answer, future))
            self._missing -= 1
        self._answer_if_complete()
        return future

    def leave(self) -> None:
        """A call will hand in nothing."""
        with self._lock:
            self._missing -= 1
        self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        with self._lock:
            if self._missing > 0:
                return
            waiting, self._waiting = self._waiting, []
        if waiting:
            _answer(waiting)


def _answer(waiting: Sequence[tuple[Engine, ModelResponse, Future[None]]]) -> None:
    taken = [entry for entry in waiting if entry[2].set_running_or_notify_cancel()]
    try:
        if taken:
            generations = taken[0][0].generate_batch(
                [answer.request for _, answer, _ in taken],
                lambda place: not taken[place][1].abandoned,
            )
            for (_, answer, _), generation in zip(taken, generations, strict=True):
                answer.set_result(generation)
    except BaseException as error:
        for _, _, future in taken:
            future.set_exception(error)
        return
    for _, _, future in taken:
        future.set_result(None)


class _Seat:
    def __init__(self, table: Table, owner: object) -> None:
        self.table: Table | None = table
        self.owner = owner


_seat: ContextVar[_Seat | None] = ContextVar("lag_seat", default=None)


@contextmanager
def seated(table: Table, owner: object) -> Iterator[_Seat]:
    """Let the call of a model that is made in this context have a seat."""
    seat = _Seat(table, owner)
    token = _seat.set(seat)
    try:
        yield seat
    finally:
        _seat.reset(token)


def take_seat(owner: object) -> Table | None:
    """The table of the batch that a model's call belongs to.

    A call made again (a retry) has none, nor has a call of another model (by a callback, say).
    """
    seat = _seat.get()
    if seat is None or seat.owner is not owner:
        return None
    table, seat.table = seat.table, None
    return table


def left(seat: _Seat) -> None:
    """A call is over; if it never handed in anything, the others need not wait for it."""
    table, seat.table = seat.table, None
    if table is not None:
        table.leave()

"""Streams that are read later, somewhere else, as if it were where they were made."""

from __future__ import annotations

import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

Ended = Callable[["BaseException | None"], None]
"""Told once how a stream ended: by itself (None), by an error, or left by its reader
(``GeneratorExit``), who may never have begun to read it."""


def carried(
    stream: Iterator[T],
    *,
    context: Context,
    each: Callable[[T], None] | None = None,
    ended: Ended | None = None,
) -> Generator[T, None, None]:
    """A stream whose every step is taken in a context.

    Args:
        stream: What is read. It is closed with the generator.
        context: For this stream alone: a context cannot be entered twice at a time.
        each: Told what is read; must not raise.
        ended: Told how it ended; must not raise.
    """
    told = _Once(ended)
    reading = _read(stream, context, each, told)
    told.by_death_of(reading)
    return reading


def acarried(
    stream: AsyncIterator[T],
    *,
    variables: Mapping[ContextVar[Any], Any],
    each: Callable[[T], None] | None = None,
    ended: Ended | None = None,
) -> AsyncGenerator[T, None]:
    """As `carried`, where a step may await: the variables are set for as long as it lasts.

    Args:
        stream: What is read. It is closed with the generator.
        variables: What is set, and to what.
        each: Told what is read; must not raise.
        ended: Told how it ended; must not raise.
    """
    told = _Once(ended)
    reading = _aread(stream, variables, each, told)
    told.by_death_of(reading)
    return reading


class _Once:
    """Tells how a stream ended, also of one that nobody began to read: that one runs no code."""

    def __init__(self, ended: Ended | None) -> None:
        self._ended = ended

    def __call__(self, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error)

    def by_death_of(self, reading: object) -> None:
        weakref.finalize(reading, self, GeneratorExit()).atexit = False


def _read(
    stream: Iterator[T], context: Context, each: Callable[[T], None] | None, told: _Once
) -> Generator[T, None, None]:
    error: BaseException | None = None
    try:
        while True:
            try:
                item = context.run(next, stream)
            except StopIteration:
                return
            if each is not None:
                each(item)
            yield item
    except BaseException as reason:
        error = reason
        raise
    finally:
        try:
            if (close := getattr(stream, "close", None)) is not None:
                context.run(close)
        finally:
            told(error)


async def _aread(
    stream: AsyncIterator[T],
    variables: Mapping[ContextVar[Any], Any],
    each: Callable[[T], None] | None,
    told: _Once,
) -> AsyncGenerator[T, None]:
    error: BaseException | None = None
    try:
        while True:
            try:
                with _set(variables):
                    item = await stream.__anext__()
            except StopAsyncIteration:
                return
            if each is not None:
                each(item)
            yield item
    except BaseException as reason:
        error = reason
        raise
    finally:
        try:
            if (close := getattr(stream, "aclose", None)) is not None:
                with _set(variables):
                    await close()
        finally:
            told(error)


@contextmanager
def _set(variables: Mapping[ContextVar[Any], Any]) -> Iterator[None]:
    tokens = [(variable, variable.set(value)) for variable, value in variables.items()]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)

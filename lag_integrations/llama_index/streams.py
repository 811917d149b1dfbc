"""Streams that are read later and elsewhere, in the context where they were made."""

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
"""Is called once when a stream ends: with None, with an error, or with ``GeneratorExit`` if its
reader let go of it, maybe without having begun to read."""


def in_context(
    stream: Iterator[T],
    *,
    context: Context,
    each: Callable[[T], None] | None = None,
    ended: Ended | None = None,
) -> Generator[T, None, None]:
    """Return a stream whose every step is taken in a context.

    Args:
        stream: What is read. It is closed with the generator.
        context: For this stream alone: a context cannot be entered twice at a time.
        each: Called with each item; must not raise.
        ended: Called when it ended; must not raise.
    """
    once = _Once(ended)
    reading = _read(stream, context, each, once)
    once.call_when_collected(reading)
    return reading


def with_variables(
    stream: AsyncIterator[T],
    *,
    variables: Mapping[ContextVar[Any], Any],
    each: Callable[[T], None] | None = None,
    ended: Ended | None = None,
) -> AsyncGenerator[T, None]:
    """Return a stream during whose steps, which may await, context variables are set.

    Args:
        stream: What is read. It is closed with the generator.
        variables: The variables and their values.
        each: Called with each item; must not raise.
        ended: Called when it ended; must not raise.
    """
    once = _Once(ended)
    reading = _aread(stream, variables, each, once)
    once.call_when_collected(reading)
    return reading


class _Once:
    """Calls `Ended` once, also for a stream that nobody began to read: that one runs no code."""

    def __init__(self, ended: Ended | None) -> None:
        self._ended = ended

    def __call__(self, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error)

    def call_when_collected(self, reading: object) -> None:
        weakref.finalize(reading, self, GeneratorExit()).atexit = False


def _read(
    stream: Iterator[T], context: Context, each: Callable[[T], None] | None, once: _Once
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
            once(error)


async def _aread(
    stream: AsyncIterator[T],
    variables: Mapping[ContextVar[Any], Any],
    each: Callable[[T], None] | None,
    once: _Once,
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
            once(error)


@contextmanager
def _set(variables: Mapping[ContextVar[Any], Any]) -> Iterator[None]:
    tokens = [(variable, variable.set(value)) for variable, value in variables.items()]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)

"""Inputs of ``batch`` and ``abatch``, answered with one forward pass a token.

LangChain answers a batch by concurrent calls of ``invoke``. Each call joins a `BatchCollector` and
submits its request; the last one to submit runs the batch for all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list
from pydantic import ConfigDict, Field

from lag_integrations.chat.response import ModelResponse
from lag_integrations.engine.engine import Engine


class BatchCollector:
    """Collect the requests of concurrent calls, and generate when each has submitted or left.

    Args:
        size: Number of calls.
    """

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()
        self._missing = size
        self._submitted: list[tuple[Engine, ModelResponse, Future[None]]] = []

    def submit(self, engine: Engine, response: ModelResponse) -> Future[None]:
        """Add a request. The last call generates all responses before this returns."""
        future: Future[None] = Future()
        with self._lock:
            self._submitted.append((engine, response, future))
            self._missing -= 1
        self._generate_if_complete()
        return future

    def leave(self) -> None:
        """Go on without one of the calls: it will submit nothing."""
        with self._lock:
            self._missing -= 1
        self._generate_if_complete()

    def _generate_if_complete(self) -> None:
        with self._lock:
            if self._missing > 0:
                return
            submitted, self._submitted = self._submitted, []
        if submitted:
            _generate(submitted)


def _generate(submitted: Sequence[tuple[Engine, ModelResponse, Future[None]]]) -> None:
    waited_for = [entry for entry in submitted if entry[2].set_running_or_notify_cancel()]
    try:
        if waited_for:
            generations = waited_for[0][0].generate_batch(
                [response.request for _, response, _ in waited_for],
                lambda index: not waited_for[index][1].abandoned,
            )
            for (_, response, _), generation in zip(waited_for, generations, strict=True):
                response.set_result(generation)
    except BaseException as error:
        for _, _, future in waited_for:
            future.set_exception(error)
        return
    for _, _, future in waited_for:
        future.set_result(None)


class _Membership:
    """The place of one call in a batch, until the call takes it or leaves."""

    def __init__(self, collector: BatchCollector, model: object) -> None:
        self._collector: BatchCollector | None = collector
        self.model = model

    def take(self) -> BatchCollector | None:
        """Return the batch, once: a call made again, as a retry, has none."""
        collector, self._collector = self._collector, None
        return collector

    def leave(self) -> None:
        """Keep the other calls from waiting for this one, if it never took its place."""
        if (collector := self.take()) is not None:
            collector.leave()


_membership: ContextVar[_Membership | None] = ContextVar("lag_batch", default=None)


@contextmanager
def join(collector: BatchCollector, model: object) -> Iterator[_Membership]:
    """Make the next call of a model in this block one of a batch.

    The block has to end with `_Membership.leave`, which may generate.
    """
    membership = _Membership(collector, model)
    token = _membership.set(membership)
    try:
        yield membership
    finally:
        _membership.reset(token)


def take_membership(model: object) -> BatchCollector | None:
    """Return the batch that a call of this model belongs to, if any.

    A call of another model in the same context, by a callback, for instance, belongs to none.
    """
    membership = _membership.get()
    return membership.take() if membership is not None and membership.model is model else None


class BatchingChatModel(BaseChatModel):
    """A chat model whose ``batch`` and ``abatch`` collect their calls in a `BatchCollector`."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    max_batch_size: int = Field(default=8, ge=1)
    """Most inputs of ``batch`` that are answered together, with one forward pass a token."""

    def batch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs, up to `max_batch_size` of them with one forward pass a token.

        Args:
            inputs: The inputs.
            config: One config for all, or one each; ``max_concurrency`` limits the batch, too.
            return_exceptions: Return exceptions in place of answers, instead of raising the first.
            **kwargs: Settings of the calls.
        """
        answers: list[Any] = []
        for batch, configs in self._batches(inputs, config):
            collector = BatchCollector(len(batch))

            def call(
                input: Any, its_config: RunnableConfig, collector: BatchCollector = collector
            ) -> Any:
                with join(collector, self) as membership:
                    try:
                        return self.invoke(input, its_config, **kwargs)
                    except Exception as error:
                        return error
                    finally:
                        membership.leave()

            with ContextThreadPoolExecutor(max_workers=len(batch)) as executor:
                answers += executor.map(call, batch, configs)
            _raise_first(answers, return_exceptions)
        return answers

    async def abatch(  # type: ignore[override]
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Answer several inputs as `batch` does."""
        answers: list[Any] = []
        for batch, configs in self._batches(inputs, config):
            collector = BatchCollector(len(batch))

            async def call(
                input: Any, its_config: RunnableConfig, collector: BatchCollector = collector
            ) -> Any:
                with join(collector, self) as membership:
                    try:
                        return await self.ainvoke(input, its_config, **kwargs)
                    except Exception as error:
                        return error
                    finally:
                        await asyncio.to_thread(membership.leave)

            answers += await asyncio.gather(*map(call, batch, configs))
            _raise_first(answers, return_exceptions)
        return answers

    def _batches(
        self, inputs: list[Any], config: RunnableConfig | list[RunnableConfig] | None
    ) -> Iterator[tuple[list[Any], list[RunnableConfig]]]:
        configs = get_config_list(config, len(inputs))
        limits = [each.get("max_concurrency") or self.max_batch_size for each in configs]
        size = max(1, min([self.max_batch_size, *limits]))
        for begin in range(0, len(inputs), size):
            yield inputs[begin : begin + size], configs[begin : begin + size]


def _raise_first(answers: Sequence[Any], return_exceptions: bool) -> None:
    for answer in answers:
        if isinstance(answer, Exception) and not return_exceptions:
            raise answer

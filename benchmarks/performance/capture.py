"""What capture adds to a run, and what encoding the run takes afterwards."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, RunnableLambda

from benchmarks.performance.paired import Figure, figures
from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.langchain import LAGChatModel
from lag_integrations.langchain.capture.handler import CaptureHandler

RUN, ENCODING = "a run of three calls, s", "tokens read to encode a run"
PLAIN, CAPTURED, HANDLER = "not captured", "captured", "of it, in the handler"
WHOLE, LIVE = "all of its trace", "with what was generated kept"
_CALLS, _TOKENS = 3, 24


def capture(engine: Engine, embedder: Any, rounds: int) -> Iterator[Figure]:
    """Measure a chat of three turns, with and without the callback handler."""
    model = LAGChatModel(engine, max_tokens=_TOKENS, temperature=0)

    def chat(task: str, config: RunnableConfig) -> str:
        said: list[AnyMessage] = [SystemMessage("You keep the harbour.")]
        for call in range(_CALLS):
            said.append(HumanMessage(f"{task} On day {call}?"))
            said.append(model.invoke(said, config))
        return str(said[-1].content)

    agent = RunnableLambda(chat)
    taken: dict[str, list[float]] = {PLAIN: [], CAPTURED: [], HANDLER: []}
    read: dict[str, list[float]] = {WHOLE: [], LIVE: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        KVLogMemory(folder, embedder=embedder) as memory,
    ):
        memory.attach(engine)
        handler = memory.callback_handler()
        within = _Within(handler)
        configs: dict[str, RunnableConfig] = {PLAIN: {}, CAPTURED: {"callbacks": [handler]}}
        for number in range(rounds + 1):  # the first warms up
            for way in (PLAIN, CAPTURED) if number % 2 else (CAPTURED, PLAIN):
                before = set(memory.store.ledger.ids())
                within.seconds = 0.0
                begun = time.perf_counter()
                agent.invoke(f"{way} {number}: which boats came?", configs[way])
                seconds = time.perf_counter() - begun
                with _Reading(engine) as reading:
                    memory.flush()
                if number:
                    taken[way].append(seconds)
                if number and way is CAPTURED:
                    taken[HANDLER].append(within.seconds)
                    new = set(memory.store.ledger.ids()) - before
                    (trace,) = memory.store.ledger.get(list(new)).values()
                    rendered = engine.chat_template.render(trace.messages, generate=False)
                    read[WHOLE].append(len(rendered.token_ids))
                    read[LIVE].append(reading.tokens)
    yield from figures(RUN, {"tokens a call": _TOKENS}, taken, (PLAIN, CAPTURED))
    yield from figures(ENCODING, {"calls": _CALLS}, read, (WHOLE,))


class _Within:
    """Adds up the time that LangChain spends in a handler: it waits for it."""

    def __init__(self, handler: CaptureHandler) -> None:
        self.seconds = 0.0
        for name in dir(handler):
            if name.startswith("on_"):
                setattr(handler, name, self._timed(getattr(handler, name)))

    def _timed(self, event: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(event)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return event(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


class _Reading:
    """Counts the tokens that a model reads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens = 0

    def __enter__(self) -> _Reading:
        def count(_: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.tokens += kwargs["input_ids"].numel()

        self._hook = self._engine.model.register_forward_pre_hook(count, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

"""Beside llama.cpp on the same GGUF file and threads, where ``llama-cpp-python`` is installed.

It is what a laptop user would take instead, with logs as text in the prompt and its own prefix
cache. Each round has logs and a question of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch

from benchmarks.performance.paired import Figure, figures, interleaved
from benchmarks.performance.tasks import Task
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.generation.sequence import Generation
from lag_integrations.evaluation.as_text import generate_with_text, read_as_text
from lag_integrations.kv.segment import Segment
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.traces.message import Message

SUITE = "beside llama.cpp, tokens a second"
READING = "beside llama.cpp, reading tokens a second"
ANSWERS = "50 tokens behind three logs, s"
FIRST = "first token behind three logs, s"
THEIRS, OURS = "llama.cpp", "engine"
KV, TEXT, THEIR_TEXT = "KV, in memory", "the same as text", "llama.cpp, the same as text"

_TASK = "Tell a long story about a lighthouse."
_READ, _TOKENS, _ROOM = 512, 50, 300


def beside_llama_cpp(engine: Engine, rounds: int, log_tokens: list[int]) -> Iterator[Figure]:
    """Measure decoding, reading and whole answers.

    Args:
        engine: A model loaded from a GGUF file.
        rounds: How often.
        log_tokens: Tokens of all three logs together.
    """
    if not engine.name.endswith(".gguf") or find_spec("llama_cpp") is None:
        return
    theirs = _LlamaCpp(engine.name, max(log_tokens) + _ROOM + _TOKENS)
    prompt = engine.render([Message(role="user", content=_TASK)]).token_ids
    ways: dict[str, Callable[[], float]] = {
        THEIRS: lambda: theirs.answer(prompt, _TOKENS)[1],
        OURS: lambda: _timed(engine.generate, [Message(role="user", content=_TASK)], [])[1],
    }
    yield from figures(SUITE, {}, _rates(interleaved(rounds, ways), _TOKENS - 1), (THEIRS,))
    number = iter(range(10**6))
    read: dict[str, Callable[[], float]] = {
        THEIRS: lambda: theirs.answer(_unread(engine, next(number)), 1)[0],
        OURS: lambda: _first(engine, _unread(engine, next(number))),
    }
    yield from figures(READING, {}, _rates(interleaved(rounds, read), _READ), (THEIRS,))
    for tokens in log_tokens:
        if tokens + _ROOM > engine.window:
            continue
        rows = [_behind_logs(engine, theirs, round_, tokens) for round_ in range(rounds + 1)][1:]
        for suite, place in ((FIRST, 0), (ANSWERS, 1)):
            taken = {way: [row[way][place] for row in rows] for way in rows[0]}
            yield from figures(suite, {"log tokens": tokens}, taken, (THEIR_TEXT, TEXT))


class _LlamaCpp:
    def __init__(self, path: str, context: int) -> None:
        from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

        threads = torch.get_num_threads()
        self._llama: Any = Llama(
            path, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def answer(self, prompt: list[int], tokens: int) -> tuple[float, float]:
        """Return the seconds to the first of so many greedy tokens, and from there to the last.

        Its team of OpenMP threads ends with the answer: two teams slow each other down.
        """
        return in_own_thread(lambda: self._answer(prompt, tokens))

    def _answer(self, prompt: list[int], tokens: int) -> tuple[float, float]:
        begun = time.perf_counter()
        written = self._llama.generate(prompt, temp=0.0)
        next(written)
        first = time.perf_counter()
        list(islice(written, tokens - 1))
        return first - begun, time.perf_counter() - first


def _behind_logs(
    engine: Engine, theirs: _LlamaCpp, round_: int, tokens: int
) -> dict[str, tuple[float, float]]:
    """Return of each way the seconds to the first token, and to the last."""
    task = Task.make(engine, round_, logs=3, tokens=tokens)
    segments = [engine.encode(trace) for trace in task.traces]
    asked = {way: [task.question(way)] for way in (KV, TEXT, THEIR_TEXT)}
    text = read_as_text(engine.request(asked[THEIR_TEXT], segments)).prompt_ids
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        KV: lambda: _timed(engine.generate, asked[KV], segments),
        TEXT: lambda: _timed(partial(generate_with_text, engine), asked[TEXT], segments),
        THEIR_TEXT: lambda: theirs.answer(list(text), _TOKENS),
    }
    names = list(ways)[round_ % len(ways) :] + list(ways)[: round_ % len(ways)]
    taken = {name: ways[name]() for name in names}
    return {name: (taken[name][0], sum(taken[name])) for name in ways}


def _timed(
    generate: Callable[..., Generation], messages: list[Message], segments: list[Segment]
) -> tuple[float, float]:
    """Return the seconds to the first token, and from there to the last."""
    begun = time.perf_counter()
    generation = generate(
        messages, segments, max_new_tokens=_TOKENS, min_new_tokens=_TOKENS, temperature=0
    )
    first = generation.time_to_first_token
    return first, time.perf_counter() - begun - first


def _first(engine: Engine, prompt: list[int]) -> float:
    message = Message(role="user", content=str(engine.tokenizer.decode(prompt)))
    return engine.generate([message], max_new_tokens=1, temperature=0).time_to_first_token


def _unread(engine: Engine, number: int) -> list[int]:
    """Return tokens of a text that nobody has read yet."""
    content = Task.make(engine, number, logs=1, tokens=_READ).traces[0].messages[-1].text
    return engine.tokens_of(content)[:_READ]


def _rates(taken: dict[str, list[float]], tokens: int) -> dict[str, list[float]]:
    return {way: [tokens / seconds for seconds in values] for way, values in taken.items()}

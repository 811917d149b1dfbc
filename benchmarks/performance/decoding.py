"""How fast answers are written: against plain `generate` and ChatHuggingFace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from langchain_core.messages import AIMessage

from benchmarks.performance.hugging_face import chat_hugging_face
from benchmarks.performance.paired import Figure, figures, interleaved
from benchmarks.performance.random_segments import random_segment
from lag_integrations.engine.engine import Engine
from lag_integrations.kv.segment import Segment
from lag_integrations.langchain import LAGChatModel
from lag_integrations.runtime.own_thread import in_own_thread
from lag_integrations.traces.message import Message

SUITE, FIRST = "decoding, tokens a second", "first token of a stream, ms"
ENGINE, GENERATE = "engine", "transformers' generate"
_TASK = "Tell a long story about a lighthouse."


def decoding(engine: Engine, rounds: int, tokens: int, batches: list[int]) -> Iterator[Figure]:
    """Measure answers of so many tokens.

    Args:
        engine: A model without a prefix cache: the peers have none.
        rounds: How often.
        tokens: Tokens an answer, whatever the model would rather do.
        batches: Sizes of batches.
    """
    model = LAGChatModel(engine, max_tokens=tokens, temperature=0)
    messages = [Message(role="user", content=_TASK)]
    segments = [random_segment(engine, 341, seed) for seed in range(3)]
    prompt = torch.tensor([engine.render(messages).token_ids], device=engine.model.device)

    def generate() -> object:
        return engine.model.generate(
            prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        )

    def written(segments: Sequence[Segment]) -> object:
        return engine.generate(
            messages, segments, max_new_tokens=tokens, min_new_tokens=tokens, temperature=0
        )

    ways: dict[str, Callable[[], object]] = {
        GENERATE: generate,
        ENGINE: lambda: written(()),
        "engine, behind 1,023 log tokens": lambda: written(segments),
        "engine, on another thread": lambda: in_own_thread(lambda: written(())),
        "LAGChatModel.invoke": lambda: model.invoke(_TASK, min_new_tokens=tokens),
        "LAGChatModel.stream": lambda: list(model.stream(_TASK, min_new_tokens=tokens)),
    }
    if (answer := chat_hugging_face(engine, tokens)) is not None:
        theirs = answer
        ways["ChatHuggingFace"] = lambda: theirs(_TASK)
    taken = interleaved(rounds, {name: _rate(way, tokens) for name, way in ways.items()})
    yield from figures(SUITE, {"tokens": tokens, "batch": 1}, taken, (GENERATE, ENGINE))
    streams = {
        ENGINE: _delay(lambda: engine.stream(messages, temperature=0, max_new_tokens=1)),
        "LAGChatModel.stream": _delay(lambda: model.stream(_TASK, max_tokens=1)),
    }
    yield from figures(FIRST, {}, interleaved(5 * rounds, streams), (ENGINE,))

    def batch(size: int) -> None:
        answers: list[AIMessage] = model.batch([_TASK] * size, min_new_tokens=tokens)
        assert len(answers) == size

    together: dict[str, Callable[[], float]] = {ENGINE: _rate(ways[ENGINE], tokens)}
    for size in batches:
        together[f"LAGChatModel.batch of {size}"] = _rate(partial(batch, size), size * tokens)
    taken = interleaved(rounds, together)
    yield from figures(SUITE, {"tokens": tokens, "batch": "many"}, taken, (ENGINE,))


def _rate(way: Callable[[], object], tokens: int) -> Callable[[], float]:
    def measured() -> float:
        begun = time.perf_counter()
        way()
        return tokens / (time.perf_counter() - begun)

    return measured


def _delay(stream: Callable[[], Iterator[object]]) -> Callable[[], float]:
    """Measure streams of one token: a longer one that is left still has a pass running."""

    def measured() -> float:
        pieces, begun = stream(), time.perf_counter()
        next(pieces)
        seconds = time.perf_counter() - begun
        list(pieces)
        return 1e3 * seconds

    return measured

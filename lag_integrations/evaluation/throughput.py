"""What the chat model costs: ``python -m lag_integrations.evaluation.throughput``.

First token and tokens a second of the bare engine, of `LAGChatModel` (called, streamed, in a batch
of eight) and, if langchain-huggingface is installed, of ChatHuggingFace on the same loaded model.
All take turns in one run, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lag_integrations import packaged
from lag_integrations.engine import Engine
from lag_integrations.langchain import LAGChatModel
from lag_integrations.trace import Message

_TASK = "Tell a long story about a lighthouse."
_BATCH = 8


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="hub id or folder; the packaged SmolLM2 by default")
    parser.add_argument("--rounds", type=int, default=5, help="times each way is measured")
    parser.add_argument("--firsts", type=int, default=30, help="first tokens that are measured")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of an answer")
    arguments = parser.parse_args()
    # Every way reads its prompt: the peers have no prefix cache.
    engine = Engine.load(arguments.model or packaged.chat_model(), prefix_cache_bytes=0)
    firsts = _first_tokens(engine, arguments.firsts)
    ways = _ways(engine, arguments.tokens)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in track(range(arguments.rounds + 1), description="rounds"):  # the first warms up
        for name, way in ways.items():
            started = time.perf_counter()
            written = way()
            taken[name].append(written / (time.perf_counter() - started))
    table = Table("way", "first token, ms", "tokens / s", "against the engine")
    table.title = (
        f"{arguments.tokens} tokens an answer (medians of {arguments.rounds}; first token: of "
        f"{arguments.firsts})"
    )
    rates = {name: statistics.median(measured[1:]) for name, measured in taken.items()}
    for name, rate in rates.items():
        table.add_row(
            name,
            f"{firsts[name] * 1e3:.1f}" if name in firsts else "",
            f"{rate:.1f}",
            f"{rate / rates['engine']:.2f}x",
        )
    device = torch.cuda.get_device_name() if engine.model.device.type == "cuda" else "CPU"
    table.caption = (
        f"{date.today()} · {platform.machine()}, {device}, {torch.get_num_threads()} threads · "
        f"torch {torch.__version__}"
    )
    Console().print(table)


def _first_tokens(engine: Engine, rounds: int) -> dict[str, float]:
    """Median seconds to the first token, the two ways taking turns to begin."""
    model = LAGChatModel(engine, max_tokens=2, temperature=0)

    def bare() -> None:
        next(engine.stream([Message(role="user", content=_TASK)], temperature=0))

    def streamed() -> None:
        next(model.stream(_TASK))

    ways = {"engine": bare, "stream": streamed}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(rounds + 2), description="first tokens"):
        for name in sorted(ways, reverse=bool(number % 2)):
            started = time.perf_counter()
            ways[name]()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[2:]) for name, seconds in taken.items()}


def _ways(engine: Engine, tokens: int) -> dict[str, Callable[[], int]]:
    # All ways write the same number of tokens, whatever the model would rather do.
    model = LAGChatModel(engine, max_tokens=tokens, temperature=0)

    def bare() -> int:
        answer = engine.generate(
            [Message(role="user", content=_TASK)],
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            temperature=0,
        )
        return len(answer.token_ids)

    def streamed() -> int:
        return sum(map(_written, model.stream(_TASK, min_new_tokens=tokens)))

    def called() -> int:
        return _written(model.invoke(_TASK, min_new_tokens=tokens))

    def batched() -> int:
        return sum(map(_written, model.batch([_TASK] * _BATCH, min_new_tokens=tokens)))

    ways = {
        "engine": bare,
        "stream": streamed,
        "invoke": called,
        f"batch of {_BATCH}": batched,
    }
    if (theirs := _chat_hugging_face(engine, tokens)) is not None:
        ways["ChatHuggingFace"] = theirs
    return ways


def _written(message: BaseMessage) -> int:
    usage = message.usage_metadata if isinstance(message, AIMessage) else None
    return usage["output_tokens"] if usage else 0


def _chat_hugging_face(engine: Engine, tokens: int) -> Callable[[], int] | None:
    try:
        from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
    except ImportError:
        return None
    from transformers import GenerationConfig, pipeline

    config = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    generator = pipeline(
        "text-generation",
        model=engine.model,
        tokenizer=engine.tokenizer,
        return_full_text=False,
        generation_config=config,
    )
    model = ChatHuggingFace(llm=HuggingFacePipeline(pipeline=generator), tokenizer=engine.tokenizer)

    def called() -> int:
        answer = model.invoke([HumanMessage(_TASK)])
        return len(engine.tokenizer(str(answer.content))["input_ids"])

    return called


if __name__ == "__main__":
    main()

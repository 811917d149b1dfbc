"""Measure what this package costs: ``python -m benchmarks.performance``.

Methods are interleaved. Figures are medians [quartiles] of per-round time ratios.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.performance.capture import capture
from benchmarks.performance.decoding import decoding
from benchmarks.performance.first_token import first_token
from benchmarks.performance.importing import importing
from benchmarks.performance.llama_cpp import beside_llama_cpp
from benchmarks.performance.loading import loading
from benchmarks.performance.memory_use import memory_use
from benchmarks.performance.paired import Figure, Setting
from benchmarks.performance.plot import draw
from benchmarks.performance.recall import recall
from benchmarks.performance.results import changes, conditions, markdown, read, save, tables
from benchmarks.performance.weights import weights
from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.store.embedder import load_embedder

_SUITES = (
    *("first-token", "loading", "recall", "decoding", "weights", "capture", "import", "memory"),
    "llama.cpp",
)
_TOKENS = (128, 256, 512, 1024, 2048, 4096)
_LOGS = (1, 2, 4, 8)
_CODECS = ("bf16", "int8", "int4", "int8+zstd")


def main() -> None:
    """Measure, print tables, and write figures and a plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__)
    parser.add_argument("--model", help="hub id, folder or GGUF; packaged SmolLM2 by default")
    parser.add_argument("--dtype", default="auto", help="of the weights")
    parser.add_argument("--quantization", help="of the weights: int8, int4 or auto")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder of the results")
    parser.add_argument("--compare", type=Path, help="bench.json of an earlier run")
    parser.add_argument("--rounds", type=int, default=5, help="times each way is measured")
    parser.add_argument("--tokens", type=int, nargs="+", default=_TOKENS, help="log tokens")
    parser.add_argument(
        "--logs", type=int, nargs="*", default=_LOGS, help="logs with 1,024 tokens together"
    )
    parser.add_argument("--suites", nargs="+", choices=_SUITES, default=_SUITES)
    arguments = parser.parse_args()
    console = Console(width=150)
    if arguments.compare is not None and not arguments.compare.is_file():
        parser.error(f"There is no {arguments.compare}; give the bench.json of an earlier run.")
    before = None if arguments.compare is None else read(arguments.compare)
    embedder = load_embedder()
    engine = Engine.load(
        packaged.resolve(arguments.model),
        dtype=arguments.dtype,
        quantization=arguments.quantization,
    )
    rounds, tokens = arguments.rounds, list(arguments.tokens)
    settings: list[Setting] = [{"log tokens": number, "k": 3} for number in tokens]
    settings += [{"log tokens": 1024, "k": k} for k in arguments.logs]
    bare = Engine(engine.model, engine.tokenizer, prefix_cache_bytes=0)
    suites: dict[str, Callable[[], Iterator[Figure]]] = {
        "first-token": lambda: first_token(engine, embedder, rounds, settings),
        "loading": lambda: loading(engine, 3 * rounds, tokens, list(_CODECS)),
        "recall": lambda: recall(embedder, 10 * rounds, 1_000),
        "decoding": lambda: decoding(bare, rounds, 48, [2, 4, 8]),
        "weights": lambda: weights(engine, rounds, 48),
        "capture": lambda: capture(engine, embedder, 4 * rounds),
        "import": lambda: importing(engine, embedder, 3, 64),
        "memory": lambda: memory_use(engine, embedder, rounds, 1_000),
        "llama.cpp": lambda: beside_llama_cpp(engine, rounds, tokens),
    }
    about = conditions(Path(engine.name).name, str(engine.model.dtype).removeprefix("torch."))
    figures: list[Figure] = []
    for name in arguments.suites:
        with console.status(name):
            found: list[Figure] = []
            for figure in suites[name]():
                found.append(figure)
                # What there is, should it be interrupted.
                save(arguments.out / "bench.json", about, [*figures, *found])
        figures += found
        for table in tables(found):
            console.print(table)
    (arguments.out / "bench.md").write_text(markdown(figures), "utf-8")
    if "first-token" in arguments.suites:
        draw(figures, arguments.out / "first_token.svg")
    console.print(" · ".join(about.values()), f"· written to {arguments.out}")
    if before is not None:
        console.print(changes(before[1], figures), before[0])


if __name__ == "__main__":
    main()

"""What fewer bits cost and gain: ``python -m benchmarks.quantization``.

The model reads texts of this repository's documentation with weights of each kind. Reported are how
far its next-token distributions are from those of the dense weights (KL divergence, nats), how
often the likeliest token is the same, and how long passes of few and many tokens take.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.performance.paired import Spread, interleaved
from lag_integrations import packaged
from lag_integrations.engine.engine import Engine
from lag_integrations.evaluation.machine import stamp
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.forward import prefill

_DENSE = "as loaded"
_ROWS = (1, 8, 256)
_TOKENS, _SKIPPED = 220, 20


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=__doc__)
    parser.add_argument("--model", help="packaged model, hub id or folder; SmolLM2 by default")
    parser.add_argument("--texts", type=int, default=16, help="how many texts are read")
    parser.add_argument("--rounds", type=int, default=7, help="how often passes are timed")
    arguments = parser.parse_args()
    model = packaged.resolve(arguments.model)
    engines = {_DENSE: Engine.load(model)}
    for scheme in ("int8", "int4", "auto"):
        engines[scheme] = Engine.load(model, quantization=scheme)
    texts = list(_texts(engines[_DENSE]))[: arguments.texts]
    ways: dict[str, Callable[[], float]] = {
        f"{scheme} {rows}": partial(_seconds, engine, rows)
        for rows in _ROWS
        for scheme, engine in engines.items()
    }
    with torch.no_grad():
        expected = [_distribution(engines[_DENSE], text) for text in texts]
        taken = interleaved(arguments.rounds, ways)
        columns = [f"{rows} at once, of dense" for rows in _ROWS]
        table = Table("weights", "KL", "same token", *columns, title=engines[_DENSE].name)
        for scheme, engine in engines.items():
            found = [_distribution(engine, text) for text in texts]
            pairs = list(zip(expected, found, strict=True))
            far = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).mean()
            same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in pairs]).float().mean()
            times = (_ratio(taken, scheme, rows) for rows in _ROWS)
            table.add_row(scheme, f"{far:.4f}", f"{same:.1%}", *times)
    console = Console(width=150)
    console.print(table)
    console.print(stamp())


def _texts(engine: Engine) -> Iterator[torch.Tensor]:
    for path in sorted(Path(__file__).parents[1].glob("docs/*.md")):
        ids = engine.tokens_of(path.read_text("utf-8")[:4000])[-_TOKENS:]
        yield torch.tensor(ids)


def _distribution(engine: Engine, ids: torch.Tensor) -> torch.Tensor:
    """Return fp32 ``[tokens, vocabulary]``, the log probabilities of what follows each token."""
    logits = engine.model(ids[None]).logits[0, _SKIPPED:]
    return torch.log_softmax(logits.float(), -1)


def _seconds(engine: Engine, rows: int) -> float:
    cache = new_cache(room=rows + 64)
    prefill(engine.model, torch.arange(100, 164), cache)
    begun = time.perf_counter()
    prefill(engine.model, torch.arange(200, 200 + rows), cache).argmax().item()
    return time.perf_counter() - begun


def _ratio(taken: dict[str, list[float]], scheme: str, rows: int) -> str:
    ours, dense = taken[f"{scheme} {rows}"], taken[f"{_DENSE} {rows}"]
    return str(Spread.of([one / other for one, other in zip(ours, dense, strict=True)]))


if __name__ == "__main__":
    main()

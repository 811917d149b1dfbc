"""Check and time this package on a GPU: ``python -m benchmarks.gpu``.

Weights are random, of known models' shapes, so that no model and no data are needed. All of it ends
after a given time: what does not fit is left out, and said to be. Methods are interleaved; figures
are medians [quartiles].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.batches import batches, gap
from benchmarks.gpu.encoding import encoding
from benchmarks.gpu.exactness import Check, exactness
from benchmarks.gpu.first_token import first_token
from benchmarks.gpu.models import SHAPES, kv_bytes, random_engine
from benchmarks.gpu.time_limit import TimeLimit
from benchmarks.performance.paired import Figure
from benchmarks.performance.results import conditions, markdown, tables
from lag_integrations.engine.engine import Engine

_TOKENS = (256, 512, 1024, 2048, 4096, 8192)
_BATCHES = (1, 8, 32)
_ON_GPU = tuple(name for name in SHAPES if name != "tiny")
_SUITES = ("exactness", "first-token", "batches", "gap", "encoding")


def main() -> None:
    """Measure, print tables, and write ``gpu.json`` and ``gpu.md``."""
    arguments = _arguments()
    limit = TimeLimit(arguments.seconds)
    run = _Run(arguments.out, limit)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in arguments.models:
        shape = SHAPES[name]
        suites = [one for one in arguments.suites if shape.timed or one == "exactness"]
        limit.subject = f"{name}, {str(shape.dtype).removeprefix('torch.')}"
        if not suites or not limit.fits("all of it"):
            continue
        # Twice the longest log, so that a prompt behind it is kept.
        kept = 2 * max(arguments.tokens) * kv_bytes(shape)
        try:
            engine = random_engine(shape, device, kept)
        except torch.OutOfMemoryError:
            limit.leave_out("all of it", "out of memory")
            continue
        for suite in suites:
            run.measure(suite, _measured(engine, suite, arguments, limit))
        engine.close()
    run.tell_end()
    sys.exit(run.failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SHAPES, help="all but tiny by default")
    parser.add_argument("--suites", nargs="+", choices=_SUITES, default=_SUITES)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=450, help="time for all of it")
    parser.add_argument("--rounds", type=int, default=5, help="times each way is measured")
    parser.add_argument("--tokens", type=int, nargs="+", default=_TOKENS, help="log tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=_BATCHES, help="answers at once")
    parser.add_argument("--written", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens read beside an answer")
    parser.add_argument("--traces", type=int, default=32, help="traces that are encoded")
    arguments = parser.parse_args()
    if arguments.models is None and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --models tiny tries the script on a CPU.")
    arguments.models = arguments.models or _ON_GPU
    return arguments


def _measured(
    engine: Engine, suite: str, arguments: argparse.Namespace, limit: TimeLimit
) -> Iterator[Check | Figure]:
    """Return what a suite finds, as it finds it."""
    rounds, tokens = arguments.rounds, list(arguments.tokens)
    suites: dict[str, Callable[[], Iterator[Check | Figure]]] = {
        "exactness": lambda: exactness(engine),
        "first-token": lambda: first_token(engine, rounds, tokens, limit),
        "batches": lambda: batches(engine, rounds, arguments.batches, arguments.written, limit),
        "gap": lambda: gap(engine, rounds, arguments.prompt, limit),
        "encoding": lambda: encoding(engine, rounds, arguments.traces, 512, limit),
    }
    return suites[suite]()


class _Run:
    """What was found, printed and written as it comes.

    Args:
        out: Folder of the results.
        limit: Knows what was left out.

    Attributes:
        failed: Whether a check failed.
    """

    def __init__(self, out: Path, limit: TimeLimit) -> None:
        self.failed = False
        self._out, self._limit = out, limit
        self._console = Console(width=150)
        self._about = conditions("random weights", "dtypes as named")
        self._checks: list[tuple[str, Check]] = []
        self._figures: list[Figure] = []

    def measure(self, suite: str, found: Iterator[Check | Figure]) -> None:
        """Take what a suite finds.

        Args:
            suite: Name of the suite.
            found: What it finds.
        """
        model = self._limit.subject
        checks: list[Check] = []
        figures: list[Figure] = []
        with self._console.status(f"{model}: {suite}"):
            try:
                for one in found:
                    if isinstance(one, Check):
                        checks.append(one)
                    else:
                        figures.append(replace(one, suite=f"{model}: {one.suite}"))
            except torch.OutOfMemoryError:
                self._limit.leave_out(f"the rest of {suite}", "out of memory")
        self._checks += [(model, check) for check in checks]
        self._figures += figures
        self.failed |= not all(check.passed for check in checks)
        self._write()  # what there is, should it be interrupted
        if checks:
            self._console.print(_table(model, checks))
        for table in tables(_by_suite(figures)):
            self._console.print(table)

    def tell_end(self) -> None:
        """Print what was left out, and where the results are."""
        self._write()
        for what in self._limit.not_run:
            self._console.print("not run:", what)
        self._console.print(*self._about.values(), f"written to {self._out}", sep=" · ")

    def _write(self) -> None:
        found = {
            "about": self._about,
            "checks": [{"model": model, **asdict(check)} for model, check in self._checks],
            "figures": [figure.to_json() for figure in self._figures],
            "not run": self._limit.not_run,
        }
        self._out.mkdir(parents=True, exist_ok=True)
        (self._out / "gpu.json").write_text(json.dumps(found, indent=1), "utf-8")
        (self._out / "gpu.md").write_text(markdown(_by_suite(self._figures)), "utf-8")


def _by_suite(figures: Sequence[Figure]) -> list[Figure]:
    """Return figures suite by suite, each in the order in which they came."""
    order = {suite: place for place, suite in enumerate(dict.fromkeys(f.suite for f in figures))}
    return sorted(figures, key=lambda figure: order[figure.suite])


def _table(model: str, checks: Sequence[Check]) -> Table:
    table = Table("", "", "", title=f"{model}: exactness")
    for check in checks:
        table.add_row(check.name, check.found, "ok" if check.passed else "FAILED")
    return table


if __name__ == "__main__":
    main()

"""Fuzzes one target with Atheris: ``python -m tests.fuzz TARGET --seconds 3600 --corpus DIR``."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import atheris

from tests.fuzz import TARGETS
from tests.fuzz.mutate import changed_json

FINDINGS = Path(__file__).parent / "findings"
MEMORY_MB = 2048
LONGEST = 2**15
INPUTS = 100_000
"""Of one process: Atheris 3.0.0 never frees what an instrumented comparison gives. Conditions of
SQLAlchemy are compared, too, which makes up to 6 KB an input."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--timeout", type=int, default=10, help="seconds that an input may take")
    parser.add_argument("--corpus", type=Path, help="where inputs that reach more are kept")
    given = parser.parse_args()
    corpus = given.corpus or Path("results/fuzz") / given.target
    logging.disable(logging.CRITICAL)
    end, status = time.monotonic() + given.seconds, 0
    while status == 0 and (left := int(end - time.monotonic())) > 0:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            # The fuzzer ends its process without a farewell: a child, so that nothing is left.
            child = os.fork()
            if child == 0:
                tempfile.tempdir = folder
                fuzz(given.target, left, given.timeout, corpus)
            _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


def fuzz(name: str, seconds: int, timeout: int, corpus: Path) -> None:
    with atheris.instrument_imports(include=["lag_integrations"]):
        target: Any = import_module(f"tests.fuzz.{name}")
    scratch = Path(tempfile.mkdtemp())
    seeds, words, findings = scratch / "seeds", scratch / "words", FINDINGS / name
    for folder in (seeds, corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (seeds / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    for finding in findings.iterdir():
        shutil.copy(finding, seeds)
    words.write_text("".join(f"{quoted(word)}\n" for word in target.WORDS))
    arguments = [
        f"-max_total_time={seconds}",
        f"-runs={INPUTS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={timeout}",
        f"-max_len={LONGEST}",
        f"-dict={words}",
        f"-artifact_prefix={findings}/",
        "-print_final_stats=1",
    ]
    with target.opened() as check:
        arguments = [sys.argv[0], *arguments, str(corpus), str(seeds)]
        atheris.Setup(arguments, kept_if_it_fails(check, findings), custom_mutator=mutated)
        atheris.Fuzz()


def kept_if_it_fails(check: Callable[[bytes], None], folder: Path) -> Callable[[bytes], None]:
    """The function that is fuzzed; the input with which it raises is kept, and all ends."""

    def checked(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            traceback.print_exc()
            file = folder / hashlib.sha256(data).hexdigest()[:16]
            file.write_bytes(data)
            print(f"Kept as {file}.", file=sys.stderr, flush=True)
            os._exit(1)  # an exit in form would wait for threads

    return checked


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """An input changed as libFuzzer does, or, every second time, by its JSON."""
    changed = changed_json(data, seed) if seed % 2 else data
    return changed if changed != data and len(changed) <= most else atheris.Mutate(data, most)


def quoted(word: str) -> str:
    """A word as libFuzzer's dictionaries have it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"'


if __name__ == "__main__":
    main()

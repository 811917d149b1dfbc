"""Segments in llama.cpp: ``python -m benchmarks.llama_cpp_segments --model FILE.gguf``.

Needs ``llama-cpp-python``. Questions and logs are those of the built-in set of calibration; answers
are the engine's, greedy, read token by token. First llama.cpp keeps the last response of its own
reading of a log, moves it behind the beginning of the prompt, and is compared with the same where
the log was read at those positions. Then it is given the engine's segments, and is compared with
the engine. What is compared are the next token's distributions: mean and largest KL divergence in
nats, how often the likeliest token is the same, and in how many answers always. Last come times.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import DynamicCache

from benchmarks.llama_cpp_sequences import CacheType, LlamaCpp, state_of
from benchmarks.performance.paired import Spread
from lag_integrations.calibration import cases as calibration
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastResponses
from lag_integrations.evaluation.machine import stamp
from lag_integrations.kv.cache import LayerKV, new_cache, read_layers
from lag_integrations.kv.forward import Unread, prefill, read_next
from lag_integrations.kv.inject import inject
from lag_integrations.kv.segment import Segment
from lag_integrations.traces.message import Message
from lag_integrations.traces.trace import Trace

_ANSWER, _FAR = 24, 700
_TOKENS, _TURN, _TIMED = (256, 1024), 40, 50
_PROMPT, _HEAD, _LOGS = 0, 1, 2
"""Sequences: of the prompt, of a beginning that is kept, and of the first log."""
_CACHES: tuple[tuple[CacheType, bool], ...] = (("f32", False), ("f16", True))
_MOVED, _ROTATED = "KV, moved by llama.cpp", "KV, rotated by the engine"
_UNTURNED, _THERE = "KV, not turned", "KV, read there, far off"
_KEPT, _ALONE = "KV, in its cache", "read without its context"
_BARE, _TEXT = "nothing", "text"
_DISTANCES = ("KL", "largest KL", "same token", "same answer")


@dataclass(frozen=True)
class Case:
    """A question with its logs.

    Attributes:
        log: The last of the logs.
        segments: What the engine encoded of the logs.
        head: Tokens of the prompt before the segments, at least one.
        tail: Tokens after them, up to the answer.
        temperature: Of the attention to the segments.
        answer: Tokens of the engine's answer, greedy.
        expected: The engine's logits for each of them, ``[tokens, vocabulary]``.
        expected_as_text: The same where the segments' tokens are read as text.
    """

    log: Trace
    segments: tuple[Segment, ...]
    head: list[int]
    tail: list[int]
    temperature: float
    answer: list[int]
    expected: torch.Tensor
    expected_as_text: torch.Tensor

    @classmethod
    def of(cls, engine: Engine, case: calibration.Case) -> Case:
        """Encode the logs, and have the engine answer."""
        segments = tuple(engine.encode(log) for log in case.logs)
        question = [Message(role="user", content=case.question)]
        request = engine.request(question, segments)
        ids, at = list(request.prompt_ids), request.split
        temperature = request.attention_temperature
        made = engine.generate(question, segments, temperature=0, max_new_tokens=_ANSWER)
        answer, caches = made.token_ids, (new_cache(), new_cache())
        for cache in caches:
            prefill(engine.model, torch.tensor(ids[:at]), cache)
        _inject(engine, segments, caches[0], at, temperature)
        prefill(engine.model, torch.cat([segment.token_ids for segment in segments]), caches[1])
        rest = [*ids[at:], *answer[:-1]]
        expected = [read_next(engine.model, Unread(rest, one, len(answer))) for one in caches]
        log, head, tail = case.logs[-1], ids[:at], ids[at:]
        return cls(log, segments, head, tail, temperature, answer, *expected)

    @property
    def end(self) -> int:
        """Position behind the segments."""
        return len(self.head) + len(self.text)

    @property
    def text(self) -> list[int]:
        """The tokens of all segments."""
        return [token for segment in self.segments for token in segment.token_ids.tolist()]


class Comparison:
    """How distributions differ from those that were expected, over many cases."""

    def __init__(self) -> None:
        self._far: list[torch.Tensor] = []
        self._same: list[torch.Tensor] = []

    def add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Add logits ``[tokens, vocabulary]``."""
        known = min(expected.shape[1], found.shape[1])  # one may pad the vocabulary
        p, q = (one[:, :known].float().log_softmax(-1) for one in (expected, found))
        self._far.append((p.exp() * (p - q)).sum(-1))
        self._same.append((p.argmax(-1) == q.argmax(-1)).float())

    def row(self) -> list[str]:
        """Return mean and largest KL divergence, tokens that are the same, and whole answers."""
        far, same = torch.cat(self._far), torch.cat(self._same)
        answers = sum(bool(tokens.all()) for tokens in self._same)
        return [
            f"{far.mean():.1e}",
            f"{far.max():.1e}",
            f"{same.mean():.1%}",
            f"{answers} of {len(self._same)}",
        ]


def main() -> None:
    """Compare, time, and print the tables."""
    name = "python -m benchmarks.llama_cpp_segments"
    parser = argparse.ArgumentParser(prog=name, description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--questions", type=int, default=17, help="at most how many")
    parser.add_argument("--rounds", type=int, default=5, help="how often it is timed")
    arguments = parser.parse_args()
    console = Console(width=110)
    with torch.no_grad():
        engine = Engine.load(arguments.model)
        every = -(-len(calibration.CASES) // arguments.questions)  # of all kinds
        asked = calibration.CASES[::every]
        cases = [Case.of(engine, case) for case in track(asked, "Answering")]
        columns = ("cache", "of the logs there is", *_DISTANCES)
        its_own, ours = Table(*columns), Table(*columns)
        its_own.title = f"{len(cases)} logs that llama.cpp read, the last response kept"
        ours.title = f"{len(cases)} questions behind the engine's segments, against the engine"
        for cache, flash in _CACHES:
            llama = _loaded(arguments.model, cache, flash=flash)
            kind = f"{cache}, flash attention" if flash else cache
            _compare_its_own(its_own, kind, llama, engine, cases)
            _compare_ours(ours, kind, llama, engine, cases)
            llama.close()
        console.print(its_own, ours)
        llama = _loaded(arguments.model, "f16", flash=True)
        console.print(_times(llama, arguments.rounds))
    console.print(f"{stamp()} · {arguments.model.name}")


def _loaded(model: Path, cache: CacheType, *, flash: bool) -> LlamaCpp:
    return LlamaCpp(model, context=2048, cache=cache, flash=flash, threads=torch.get_num_threads())


def _compare_its_own(
    table: Table, kind: str, llama: LlamaCpp, engine: Engine, cases: Sequence[Case]
) -> None:
    """Compare what llama.cpp moved with what it read where it stands."""
    found = {name: Comparison() for name in (_THERE, _MOVED, _ALONE, _BARE)}
    for case in track(cases, f"Its own, {kind}"):
        log = engine.encodable(case.log, LastResponses(1))
        begin, kept, at = log.keep[0], len(log.keep), len(case.head)
        response = [log.token_ids[index] for index in log.keep]
        end = at + kept

        read_there = []
        for far in (_FAR, 2 * _FAR):
            _read_anew(llama, _HEAD, case.head, far)
            _read_anew(llama, _LOGS, log.token_ids, far + at - begin)
            llama.keep(_LOGS, far + at, far + end)
            read_there.append(_predictions(llama, case, far + end))
        expected, elsewhere = read_there
        found[_THERE].add(expected, elsewhere)

        _read_anew(llama, _HEAD, case.head, 0)
        _read_anew(llama, _LOGS, log.token_ids, 0)
        llama.keep(_LOGS, begin, begin + kept)
        llama.load(_LOGS, llama.save(_LOGS))
        llama.move(_LOGS, at - begin)
        found[_MOVED].add(expected, _predictions(llama, case, end))

        _read_anew(llama, _LOGS, response, at)
        found[_ALONE].add(expected, _predictions(llama, case, end))
        llama.forget(_LOGS)
        found[_BARE].add(expected, _predictions(llama, case, at))
    for name, comparison in found.items():
        table.add_row(kind, name, *comparison.row())


def _compare_ours(
    table: Table, kind: str, llama: LlamaCpp, engine: Engine, cases: Sequence[Case]
) -> None:
    """Compare llama.cpp behind the engine's segments with the engine."""
    found = {name: Comparison() for name in (_ROTATED, _MOVED, _UNTURNED, _BARE, _TEXT)}
    for case in track(cases, f"Ours, {kind}"):
        _read_anew(llama, _HEAD, case.head, 0)
        for name in (_ROTATED, _MOVED, _UNTURNED):
            _insert(llama, engine, case, name)
            found[name].add(case.expected, _predictions(llama, case, case.end))
        for log in range(len(case.segments)):
            llama.forget(_LOGS + log)
        at = len(case.head)
        found[_BARE].add(case.expected, _predictions(llama, case, at))
        found[_TEXT].add(case.expected_as_text, _predictions(llama, case, at, case.text))
    for name, comparison in found.items():
        table.add_row(kind, name, *comparison.row())


def _read_anew(llama: LlamaCpp, sequence: int, tokens: Sequence[int], start: int) -> None:
    llama.forget(sequence)
    llama.read(sequence, tokens, start)


def _insert(llama: LlamaCpp, engine: Engine, case: Case, name: str) -> None:
    """Give llama.cpp the segments of a case, each as a sequence."""
    at = len(case.head)
    for number, segment in enumerate(case.segments):
        layers = _layers(engine, segment, at if name == _ROTATED else 0, case.temperature)
        begin = 0 if name == _MOVED else at
        llama.load(_LOGS + number, state_of(layers, begin, llama.layout))
        llama.move(_LOGS + number, at - begin)
        at += len(segment)


def _layers(engine: Engine, segment: Segment, start: int, temperature: float) -> list[LayerKV]:
    """Return a segment's keys and values at a position."""
    cache = new_cache()
    _inject(engine, [segment], cache, start, temperature)
    return read_layers(cache)


def _inject(
    engine: Engine,
    segments: Sequence[Segment],
    cache: DynamicCache,
    start: int,
    temperature: float,
) -> None:
    positions, identity = engine.positions, engine.fingerprint.id
    inject(cache, positions, segments, start=start, fingerprint=identity, temperature=temperature)


def _predictions(llama: LlamaCpp, case: Case, end: int, text: Sequence[int] = ()) -> torch.Tensor:
    """Return the logits for each token of the answer.

    Args:
        llama: Holds the beginning of the prompt, and the logs, if any.
        case: The case.
        end: Position behind the logs.
        text: What is read there first.
    """
    llama.forget(_PROMPT)
    llama.share(_HEAD, _PROMPT)
    for log in range(len(case.segments)):
        llama.share(_LOGS + log, _PROMPT)
    rest = [*text, *case.tail, *case.answer[:-1]]
    return llama.read(_PROMPT, rest, end, logits=len(case.answer))


def _times(llama: LlamaCpp, rounds: int) -> Table:
    """Time answers behind one log, which llama.cpp has read; which tokens they are does not matter.

    The beginning of the prompt was read before. The first round warms up.
    """
    table = Table("tokens", "of the log there is", "loaded, ms", "first token, s", "of text")
    table.add_column(f"{_TIMED} tokens, s")
    table.add_column("of text")
    table.title = f"Times, cache in f16, flash attention: median [quartiles] of {rounds} rounds"
    for tokens in _TOKENS:
        chance = random.Random(tokens)
        head, log, tail = (chance.choices(range(1000, 9000), k=k) for k in (_TURN, tokens, _TURN))
        _read_anew(llama, _HEAD, head, 0)
        _read_anew(llama, _LOGS, log, 0)
        state = llama.save(_LOGS)
        rows = [
            [_answer(llama, way, log, tail, state) for way in (_KEPT, _MOVED, _TEXT)]
            for _ in track(range(rounds + 1), f"Timing {tokens} tokens")
        ][1:]
        text = [row[-1] for row in rows]
        for way, times in zip((_KEPT, _MOVED, _TEXT), zip(*rows, strict=True), strict=True):
            cells = [str(tokens), way, str(Spread.of([1000 * loaded for loaded, *_ in times]))]
            for part in (1, 2):
                cells.append(str(Spread.of([one[part] for one in times])))
                pairs = zip(times, text, strict=True)
                cells.append(str(Spread.of([one[part] / other[part] for one, other in pairs])))
            table.add_row(*cells)
    return table


def _answer(
    llama: LlamaCpp,
    way: str,
    log: Sequence[int],
    tail: Sequence[int],
    state: np.ndarray[Any, Any],
) -> tuple[float, float, float]:
    """Return the seconds until the log is there, to the first token, and to the last."""
    for sequence in (_PROMPT, _LOGS):
        llama.forget(sequence)
    if way == _KEPT:  # and turned, by a pass that is not timed
        llama.load(_LOGS, state)
        llama.move(_LOGS, _TURN)
        llama.read(_LOGS, log[-1:], _TURN + len(log))
        llama.keep(_LOGS, 0, _TURN + len(log))
    begun = time.perf_counter()
    llama.share(_HEAD, _PROMPT)
    if way == _MOVED:
        llama.load(_LOGS, state)
        llama.move(_LOGS, _TURN)
    loaded = time.perf_counter() - begun
    llama.share(_LOGS, _PROMPT)
    if way == _TEXT:
        tokens, start = [*log, *tail], _TURN
    else:
        tokens, start = list(tail), _TURN + len(log)
    logits = llama.read(_PROMPT, tokens, start)
    first = time.perf_counter() - begun
    llama.write(_PROMPT, logits, start + len(tokens), _TIMED)
    return loaded, first, time.perf_counter() - begun


if __name__ == "__main__":
    main()

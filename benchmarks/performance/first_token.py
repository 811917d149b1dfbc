"""How long until the first token, with logs as KV, as text, and without."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from math import nan
from pathlib import Path
from typing import Any

import torch

from benchmarks.performance.hugging_face import Answer, chat_hugging_face
from benchmarks.performance.paired import Figure, Setting, figures
from benchmarks.performance.paper import PaperMethod
from benchmarks.performance.tasks import Task
from lag_integrations import KVLogMemory
from lag_integrations.engine.engine import Engine
from lag_integrations.engine.token_selection import LastTurn, WholeTrace
from lag_integrations.evaluation.as_text import generate_with_text
from lag_integrations.kv.cache import new_cache
from lag_integrations.kv.forward import prefill
from lag_integrations.kv.inject import inject
from lag_integrations.kv.segment import Segment

SUITE = "first token, s"
BARE, LEAST = "bare prompt", "question behind a ready cache"
HOT, COLD, RECALLED = "KV, in memory", "KV, from disk", "KV, with recall and disk"
TEXT = "the same as text"

_ROOM = 300
"""Tokens of a window that are left for the prompt."""


def first_token(
    engine: Engine, embedder: Any, rounds: int, settings: list[Setting]
) -> Iterator[Figure]:
    """Measure at some numbers of log tokens and of logs."""
    answer = chat_hugging_face(engine, 1)
    for setting in settings:
        if int(setting["log tokens"]) + _ROOM > engine.window:
            continue
        rows: list[dict[str, float]] = []
        for number in range(rounds + 1):  # the first warms up
            task = Task.make(
                engine, number, logs=int(setting["k"]), tokens=int(setting["log tokens"])
            )
            rows.append(_Round(engine, embedder, task, answer).run())
        ways = dict.fromkeys(way for row in rows for way in row)
        taken = {way: [row.get(way, nan) for row in rows[1:]] for way in ways}
        yield from figures(SUITE, setting, taken, (BARE, LEAST, HOT, TEXT))


class _Round:
    """One round of all ways, with logs of its own."""

    def __init__(self, engine: Engine, embedder: Any, task: Task, answer: Answer | None) -> None:
        self._engine = engine
        self._embedder = embedder
        self._task = task
        self._answer = answer

    def run(self) -> dict[str, float]:
        """Return the seconds that each way took."""
        with (
            tempfile.TemporaryDirectory() as folder,
            KVLogMemory(
                folder, embedder=self._embedder, min_score=-1.0, selection=LastTurn()
            ) as memory,
        ):
            memory.attach(self._engine)
            self._task.store(memory)
            times = {}
            ways: list[Callable[[KVLogMemory, Path], dict[str, float]]] = [
                self._bare,
                self._injected,
                self._text,
                self._whole_text,
                self._theirs,
                self._paper,
            ]
            turn = self._task.number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                times.update(way(memory, Path(folder)))
            return times

    def _seconds(self, way: str, segments: list[Segment]) -> float:
        return self._engine.generate(
            [self._task.question(way)], segments, max_new_tokens=1, do_sample=False
        ).time_to_first_token

    def _bare(self, *_: object) -> dict[str, float]:
        return {BARE: self._seconds(BARE, [])}

    def _injected(self, memory: KVLogMemory, _: Path) -> dict[str, float]:
        begun = time.perf_counter()
        logs = memory.recall(self._task.question(COLD).text, k=len(self._task.traces))
        recall = time.perf_counter() - begun
        memory.store.segment_cache.clear()  # the files are still in the system's page cache
        begun = time.perf_counter()
        segments = memory.segments(logs)
        load = time.perf_counter() - begun
        cold = load + self._seconds(COLD, segments)
        memory.store.segment_cache.clear()
        segments = memory.segments(logs)  # others, so that the prefix cache does not know them
        hot = self._seconds(HOT, segments)
        least = self._least(segments)
        return {HOT: hot, COLD: cold, RECALLED: recall + cold, LEAST: least}

    def _least(self, segments: list[Segment]) -> float:
        """Return the seconds of rendering the prompt and reading the question alone."""
        engine = self._engine
        messages = [self._task.question(LEAST)]
        request = engine.request(messages, segments)
        prompt_ids, split = request.prompt_ids, request.split
        cache = new_cache(room=len(prompt_ids) + sum(map(len, segments)) + _ROOM)
        with torch.no_grad():
            prefill(engine.model, torch.tensor(prompt_ids[:split]), cache)
            inject(
                cache,
                engine.positions,
                [segment.to(engine.model.device) for segment in segments],
                start=split,
                fingerprint=engine.fingerprint.id,
            )
            begun = time.perf_counter()
            prompt_ids = engine.request(messages, segments).prompt_ids
            prefill(engine.model, torch.tensor(prompt_ids[split:]), cache).argmax().item()
            return time.perf_counter() - begun

    def _text(self, memory: KVLogMemory, _: Path) -> dict[str, float]:
        return {TEXT: self._read(TEXT, self._segments(memory))}

    def _whole_text(self, memory: KVLogMemory, _: Path) -> dict[str, float]:
        way = "whole traces as text"
        whole = WholeTrace()
        traces = [
            self._engine.chat_template.render(trace.messages, generate=False)
            for trace in self._task.traces
        ]
        kept = [[one.token_ids[index] for index in whole.keep(one)] for one in traces]
        if sum(map(len, kept)) + _ROOM > self._engine.window:
            return {}
        segments = [Segment(torch.tensor(tokens), (), "") for tokens in kept]
        return {way: self._read(way, segments)}

    def _read(self, way: str, segments: list[Segment]) -> float:
        return generate_with_text(
            self._engine, [self._task.question(way)], segments, max_new_tokens=1, do_sample=False
        ).time_to_first_token

    def _theirs(self, memory: KVLogMemory, _: Path) -> dict[str, float]:
        way = "ChatHuggingFace, logs in the prompt"
        if self._answer is None:
            return {}
        said = "\n\n".join(trace.messages[-1].text for trace in self._task.traces)
        begun = time.perf_counter()
        self._answer(f"{said}\n\n{self._task.question(way).text}")
        return {way: time.perf_counter() - begun}

    def _paper(self, memory: KVLogMemory, folder: Path) -> dict[str, float]:
        way = "KV, the paper's way"
        paper = PaperMethod(self._engine, folder)
        if not paper.fits:
            return {}
        files = paper.save(self._segments(memory))
        prompt_ids = self._engine.render([self._task.question(way)]).token_ids
        return {way: paper.first_token(files, prompt_ids)}

    def _segments(self, memory: KVLogMemory) -> list[Segment]:
        return memory.segments(
            memory.recall(self._task.question("").text, k=len(self._task.traces))
        )

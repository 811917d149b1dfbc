"""What `kvlog serve` costs and bears, on loopback: ``python -m benchmarks.serving``.

Its own cost is measured with a model that answers at once; what it bears, with a real one in a
process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from lag_integrations import KVLogMemory
from lag_integrations.chat.parts import Part
from lag_integrations.chat.reply import Reply
from lag_integrations.chat.request import ChatRequest
from lag_integrations.engine.tools import Text
from lag_integrations.evaluation.machine import stamp
from lag_integrations.memory.memory import LogMemory
from lag_integrations.serving.server import Server
from lag_integrations.traces.message import Message

_SERVE = "from lag_integrations.cli import app; app()"
_TOPICS = ("the ferry to Norway", "a broken pump", "the night shift", "an invoice", "the red van")


class _Answered:
    """A reply that is there at once."""

    finish_reason = "stop"
    logprobs = None
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}  # noqa: RUF012

    def __init__(self) -> None:
        self._parts = iter((Text("Done."),))

    def __iter__(self) -> Iterator[Part]:
        return self

    def __next__(self) -> Part:
        return next(self._parts)

    def __aiter__(self) -> AsyncIterator[Part]:
        return self

    async def __anext__(self) -> Part:
        for part in self._parts:
            return part
        raise StopAsyncIteration

    def close(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""

    def report(self) -> dict[str, Any]:
        """Return that no log was used."""
        timings = {"recall": 0.0, "time_to_first_token": 0.0}
        return {"log_ids": [], "read_as_text": [], "form": None, "timings": timings}


class InstantModel:
    """A model that answers at once, without recall."""

    window = 2048

    def respond(self, memory: LogMemory, request: ChatRequest) -> Reply:
        """Return a reply."""
        return _Answered()

    def tokens_of(self, text: str) -> list[int]:
        """Return none."""
        return []

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> int:
        """Return none."""
        return 0


def own_cost(requests: int, embedder: Any = None) -> dict[str, list[float]]:
    """Return milliseconds of requests, one after the other, by whether they become logs.

    Args:
        requests: How many of each.
        embedder: Of the memory; the packaged one by default.
    """
    taken: dict[str, list[float]] = {"becomes a log": [], "does not": []}
    with tempfile.TemporaryDirectory() as folder:

        def open_memory(namespace: str) -> LogMemory:
            memory = KVLogMemory(folder, namespace=namespace, embedder=embedder)
            memory._worker.stop()  # what it does later is not the request's
            return memory

        with Server(InstantModel(), open_memory, name="instant") as server:
            server.listen("127.0.0.1", 0)
            thread = threading.Thread(target=server.run)
            thread.start()
            try:
                with httpx.Client(base_url=server.url, timeout=30) as client:
                    _wait_for(client)
                    for number in range(requests + 20):  # the first warm up
                        for way, capture in (("becomes a log", True), ("does not", False)):
                            body = _body("instant", number, 1) | {"lag": {"capture": capture}}
                            begun = time.perf_counter()
                            client.post("/v1/chat/completions", json=body).raise_for_status()
                            if number >= 20:
                                taken[way].append(1e3 * (time.perf_counter() - begun))
            finally:
                server.stop()
                thread.join()
    return taken


@dataclass
class Load:
    """What clients saw.

    Attributes:
        seconds: How long they asked.
        first: Seconds to the first piece of each answer.
        whole: Seconds of each answer.
        tokens: Tokens that were written.
        errors: What went wrong.
    """

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: list[str] = field(default_factory=list)


async def load(url: str, model: str, clients: int, seconds: float, tokens: int) -> Load:
    """Have clients ask a server, each one question after the other.

    Args:
        url: The server.
        model: Its model.
        clients: How many.
        seconds: For how long.
        tokens: Most tokens of an answer.
    """
    seen, begun = Load(), time.perf_counter()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = _body(model, number, tokens)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        asked, first = time.perf_counter(), 0.0
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if '"error"' in line:
                    seen.errors.append(line[:200])
                if not first and '"content": "' in line and '"content": ""' not in line:
                    first = time.perf_counter() - asked
                if found := re.search(r'"completion_tokens": (\d+)', line):
                    seen.tokens += int(found[1])
        seen.first.append(first or time.perf_counter() - asked)
        seen.whole.append(time.perf_counter() - asked)

    async def one(place: int) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            number = place
            while time.perf_counter() - begun < seconds:
                try:
                    await ask(client, number)
                except httpx.HTTPError as error:
                    seen.errors.append(f"{type(error).__name__}: {error}")
                number += clients

    await asyncio.gather(*(one(place) for place in range(clients)))
    seen.seconds = time.perf_counter() - begun
    return seen


@contextmanager
def served(model: str | None) -> Iterator[str]:
    """Serve a model in a process of its own, and return its URL."""
    with tempfile.TemporaryDirectory() as folder:
        named = [] if model is None else ["--model", model]
        command = [sys.executable, "-c", _SERVE, "serve", folder, "--port", "0", *named]
        command += ["--served-name", "served", "--at-once", "256"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            found = re.search(r"at (\S+)/v1", process.stdout.readline())
            if found is None:
                raise SystemExit("The server did not start; it said why.")
            try:
                yield found[1]
            finally:
                process.terminate()


def _body(model: str, number: int, tokens: int) -> dict[str, Any]:
    question = f"What do we do about {_TOPICS[number % len(_TOPICS)]}, case {number}?"
    messages = [{"role": "user", "content": question}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}


def _wait_for(client: httpx.Client) -> None:
    while True:
        try:
            client.get("/health").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.05)


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", help="hub id, folder or GGUF; packaged SmolLM2 by default")
    parser.add_argument("--url", help="a server that runs already, instead")
    parser.add_argument("--name", default="served", help="name of its model")
    parser.add_argument("--requests", type=int, default=500, help="for the own cost")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--tokens", type=int, default=16, help="most tokens of an answer")
    given = parser.parse_args()
    console = Console(width=120)
    table = Table("a request, ms", "median", "p95", title="own cost, without recall")
    for way, taken in own_cost(given.requests).items():
        table.add_row(way, f"{median(taken):.1f}", f"{_p95(taken):.1f}")
    console.print(table)
    with served(given.model) if given.url is None else _running(given.url) as url:
        seen = asyncio.run(load(url, given.name, given.clients, given.seconds, given.tokens))
    table = Table("", "", title=f"{given.clients} clients, {seen.seconds:.0f} s")
    table.add_row("answers", str(len(seen.whole)))
    table.add_row("tokens a second", f"{seen.tokens / seen.seconds:.1f}")
    table.add_row(
        "first token, s: median, p95", f"{median(seen.first):.2f}, {_p95(seen.first):.2f}"
    )
    table.add_row("answer, s: median, p95", f"{median(seen.whole):.2f}, {_p95(seen.whole):.2f}")
    table.add_row("errors", str(len(seen.errors)))
    console.print(table, *seen.errors[:3])
    console.print(stamp())


@contextmanager
def _running(url: str) -> Iterator[str]:
    """Return the URL of a server that somebody else ends."""
    yield url


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    main()

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_core.tools import tool
from pydantic import BaseModel

from lag_integrations import KVLogMemory
from lag_integrations.serving.backends import EmbeddedModel
from lag_integrations.serving.server import Server
from tests.helpers import wait_until


@contextmanager
def serving(
    engine, open_memory: Callable[[str], KVLogMemory], port: int = 0, **settings: Any
) -> Iterator[Server]:
    """A server of an engine that listens, on a thread."""
    settings.setdefault("name", "small")
    with running_server(Server(EmbeddedModel(engine), open_memory, **settings), port) as server:
        yield server


@contextmanager
def running_server(server: Server, port: int = 0) -> Iterator[Server]:
    """A server that listens, on a thread."""
    with server:
        server.listen("127.0.0.1", port)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            wait_until(lambda: answers(f"{server.url}/health"))
            yield server
        finally:
            server.stop()
            thread.join()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def open_memory(tmp_path: Path, embedder) -> Callable[[str], KVLogMemory]:
    return lambda namespace: KVLogMemory(
        tmp_path / "memory", namespace=namespace, embedder=embedder
    )


@pytest.fixture
def server(small, open_memory) -> Iterator[Server]:
    with serving(small, open_memory, name="small", max_tokens=8) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def ask(client: httpx.Client, content: str = "Where is the key?", **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    body = {"model": "small", "messages": messages, "temperature": 0} | fields
    return client.post("/v1/chat/completions", json=body)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    *said, end = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert end == "[DONE]"
    return [json.loads(line) for line in said]


@tool
def find_stock(item: str) -> str:
    """Say how many pieces of an item there are."""
    return f"12 of {item}"


class Stock(BaseModel):
    """Pieces of an item."""

    pieces: int
    known: bool

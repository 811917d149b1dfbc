from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy

from lag_integrations import Engine, KVLogMemory, Trace
from lag_integrations.memory.results import RecalledLog
from lag_integrations.traces.sources import Source
from tests.conftest import qa
from tests.store import servers
from tests.store.model import hash_embedder, tiny_engine

Open = Callable[..., KVLogMemory]


def logs_in_index(memory: KVLogMemory) -> set[str]:
    """The logs that Chroma holds entries of."""
    return {log_id for log_id, _ in memory.store.index.entries()}


@pytest.fixture(scope="session")
def tiny() -> Engine:
    return tiny_engine()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="session")
def chroma_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.chroma(tmp_path_factory.mktemp("chroma")) as url:
        yield url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """A new, empty database."""
    name = f"lag_{uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(f"{postgres_url}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield f"{postgres_url}/{name}"
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


def _backend(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a store keeps its parts."""
    settings: dict[str, Any] = {}
    if request.param in ("postgres", "all remote"):
        settings["ledger"] = request.getfixturevalue("database_url")
    if request.param in ("chroma server", "all remote"):
        settings["index"] = request.getfixturevalue("chroma_url")
    if request.param == "all remote":
        settings["segments"] = f"memory://{uuid4().hex}"
    return settings


backend = pytest.fixture(params=["local", "all remote"])(_backend)
every_backend = pytest.fixture(params=["local", "postgres", "chroma server", "all remote"])(
    _backend
)
"""For modules about how ledger and index work together: in every mixture, as their `backend`."""


@pytest.fixture
def open_store(tmp_path: Path, backend: dict[str, Any]) -> Iterator[Open]:
    """Opens memories on one store, with a cheap embedder and no floor."""
    opened: list[KVLogMemory] = []

    def open_(**settings: Any) -> KVLogMemory:
        defaults = {"embedder": hash_embedder, "min_score": -1.0, **backend}
        opened.append(KVLogMemory(tmp_path / "m", **{**defaults, **settings}))
        return opened[-1]

    yield open_
    for memory in opened:
        memory.close()


def ids(found: Iterable[RecalledLog]) -> list[str]:
    return [log.id for log in found]


def shown(number: int, *documents: str) -> Trace:
    """A log of a run that was shown a piece of each document."""
    sources = [
        Source(f"{name}-{number}", (name, f"/{name}"), "hash").to_json() for name in documents
    ]
    return qa(f"question {number}", f"answer {number}", metadata={"sources": sources})

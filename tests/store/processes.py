"""Programs that the tests run, and kill, in processes of their own.

A fork server loads the libraries once: a process costs a moment, not seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import chromadb  # noqa: F401
import torch

from lag_integrations import KVLogMemory, Trace
from lag_integrations.errors import LAGError
from lag_integrations.memory.segment_indexer import _SLOTS
from lag_integrations.store.archive import import_archive
from lag_integrations.store.store import LogStore
from tests.conftest import qa
from tests.store.model import hash_embedder, tiny_engine

torch.set_num_threads(1)
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])


def numbered(number: int, of: str = "vault") -> Trace:
    """A trace that no other number has."""
    return qa(f"What is the code of {of} {number} ?", f"The code of {of} {number} is {number * 7}.")


def open_memory(folder: Path, **settings: Any) -> KVLogMemory:
    """A memory whose embedder and model cost nothing."""
    memory = KVLogMemory(folder, embedder=hash_embedder, min_score=-1, **settings)
    memory.attach(tiny_engine())
    return memory


def start(target: Callable[..., None], *arguments: Any) -> Any:
    """Start a process."""
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def result_of(target: Callable[..., None], *arguments: Any) -> Any:
    """What a process sends over its last argument, a connection; it must end well."""
    receive, send = context.Pipe(duplex=False)
    process = start(target, *arguments, send)
    send.close()
    try:
        assert receive.poll(120), "the process said nothing"
        result = receive.recv()
        process.join(120)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
    return result


def busy(folder: Path, archive: Path, seed: int, done: Connection) -> None:
    """Adds, recalls, deletes, imports and evicts until it is killed; says what it has finished."""
    chance = random.Random(seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    memory = open_memory(folder, max_bytes=300_000)
    done.send(("ready", ""))
    number = seed * 1_000
    mine: list[str] = []
    while True:
        what = chance.random()
        if what < 0.75:
            number += 1
            mine.append(memory.add(numbered(number)))
            done.send(("added", mine[-1]))
        elif what < 0.85:
            log = memory.recall(f"What is the code of vault {number} ?", k=1)
            memory.segments(log)
        elif what < 0.90 and mine:
            gone = mine.pop(chance.randrange(len(mine)))
            done.send(("deleting", gone))
            memory.delete(gone)
        elif what < 0.95:
            memory.flush()
        elif what < 0.97:
            memory.import_from(archive)
            done.send(("imported", ""))
        else:
            memory.close()
            memory = open_memory(folder, max_bytes=300_000)


def adder(
    folder: Path,
    ledger: str | None,
    process: int,
    threads: int,
    own: int,
    shared: int,
    done: Connection,
) -> None:
    """Adds its own logs, and those that every process adds, from several threads."""
    errors: list[str] = []
    memory = open_memory(folder, ledger=ledger)

    def add(thread: int) -> None:
        try:
            for step in range(own):
                memory.add(numbered(process * 100_000 + thread * 10_000 + step))
                if step % (own // shared) == 0 and step // (own // shared) < shared:
                    memory.add(numbered(thread * 10_000 + step, of="door"))
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=add, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    try:
        memory.flush()
    except LAGError as error:
        errors.append(f"{type(error).__name__}: {error}")
    memory.close()
    done.send(errors)


def reader(folder: Path, ledger: str | None, stop: Event, done: Connection) -> None:
    """Recalls until told to stop; says how often, and what was wrong."""
    errors: list[str] = []
    memory = open_memory(folder, ledger=ledger)
    recalls = found = 0
    try:
        while not stop.is_set():
            number = recalls % 120
            logs = memory.recall(f"What is the code of vault {number} ?", k=3)
            recalls += 1
            found += len(logs)
            if len({log.id for log in logs}) != len(logs):
                errors.append("a log was recalled twice at once")
            if recalls % 20 == 0 and len(memory.segments(logs)) != len(logs):
                errors.append("segments are missing")
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
    memory.close()
    done.send((recalls, found, errors))


def importing(folder: Path, archives: Sequence[Path], done: Connection) -> None:
    """Imports archives; says of each what was wrong, and by how many bytes memory grew."""
    os.environ["OMP_NUM_THREADS"] = "1"
    store = LogStore(folder, "default")
    for archive in archives:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = ""
        try:
            import_archive(store, archive)
        except LAGError as error:
            said = str(error)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done.send((said, (after - before) * 2**10))
    store.close()


def adding(folder: Path, done: Connection) -> None:
    """Adds logs until it is killed, and says which."""
    os.environ["OMP_NUM_THREADS"] = "1"
    memory = open_memory(folder)
    for number in count():
        memory.add(numbered(number))
        done.send(number)
        time.sleep(0.02)


def embedding(folder: Path, batch: int, done: Connection) -> None:
    """Opens a store and embeds what is not embedded, until it is killed; tells of each batch."""

    def embed(texts: Sequence[str]) -> Any:
        if len(texts) >= batch:
            done.send("batch")
        return hash_embedder(texts)

    os.environ["OMP_NUM_THREADS"] = "1"
    memory = KVLogMemory(folder, embedder=embed, min_score=-1)
    memory.flush()
    threading.Event().wait()


def holding(folder: Path, what: str, done: Connection) -> None:
    """Holds something that others need, and says so."""
    with open_memory(folder) as memory, ExitStack() as held:
        if what == "index":
            held.enter_context(memory.store.index._access.session(write=False))
        elif what == "ledger":
            held.enter_context(memory.store.database.write())
        elif what == "encode":
            slots = {f"encode-{number}" for number in range(_SLOTS)}
            assert held.enter_context(memory.store.locks.try_hold(slots)) == slots
        else:
            held.enter_context(memory.store.locks.hold(f"{what}-{memory.namespace}"))
        done.send("held")
        threading.Event().wait()


def importing_without_langgraph(done: Connection) -> None:
    """Uses what works for LangChain without langchain and langgraph; tells what the rest says."""
    for name in ("langchain", "langgraph"):
        sys.modules[name] = None  # type: ignore[assignment]
    import lag_integrations.langchain as ours

    errors: list[str] = []
    _ = (ours.LAGChatModel, ours.CaptureHandler, ours.LogRetriever, ours.recall_tool)
    for name in ("KVLogMiddleware", "LogBaseStore"):
        try:
            getattr(ours, name)
        except ImportError as error:
            errors.append(str(error))
    done.send(errors)


def importing_for_llama_index(done: Connection) -> None:
    """Imports what is for LlamaIndex; tells which handlers of LlamaIndex are ours then."""
    from llama_index_instrumentation import get_dispatcher

    import lag_integrations.llama_index  # noqa: F401

    root = get_dispatcher()
    names = [each.class_name() for each in (*root.span_handlers, *root.event_handlers)]
    done.send([name for name in names if "LAG" in name])

"""Real processes, killed at any moment: what was added stays, and nothing is wrong."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

from lag_integrations import KVLogMemory
from lag_integrations.memory import embedding_indexer
from lag_integrations.store.audit import Audit
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import (
    busy,
    context,
    embedding,
    numbered,
    open_memory,
    start,
)
from tests.store.test_migrations import old_store


def run_and_kill(
    folder: Path, archive: Path, seed: int, chance: random.Random
) -> dict[str, list[str]]:
    """What a busy process had finished, or begun, when it was killed."""
    receive, send = context.Pipe(duplex=False)
    process = start(busy, folder, archive, seed, send)
    send.close()
    said: dict[str, list[str]] = {"ready": [], "added": [], "deleting": [], "imported": []}
    if chance.random() < 0.85:  # else it is killed while it opens the store, perhaps
        assert receive.poll(60), "the process did not come up"
    time.sleep(chance.random() ** 2 * 1.2)
    process.kill()
    process.join()
    while True:
        try:
            what, log_id = receive.recv()
        except EOFError:
            break
        said[what].append(log_id)
    assert process.exitcode == -9, "it ended by itself: something went wrong in it"
    return said


def check(memory: KVLogMemory, expected: set[str], chance: random.Random) -> None:
    """Nothing lost, nothing wrong, nothing left over."""
    present = set(memory.store.ledger.ids())
    assert expected <= present, f"{len(expected - present)} logs were lost"
    memory.flush()
    Audit(memory.store, min_age=0).repair()
    memory.flush()
    assert Audit(memory.store, min_age=0).verify() == []
    engine = tiny_engine()
    for log in memory.store.ledger.info(chance.sample(sorted(present), min(3, len(present)))):
        (found,) = memory.recall(log.trace.task + " " + log.trace.last_response, k=1)
        assert found.id == log.id
        segment, fresh = memory.segments([found])[0], engine.encode(log.trace)
        assert torch.equal(segment.token_ids, fresh.token_ids)
        torch.testing.assert_close(segment.slots[0][1], fresh.slots[0][1])


@pytest.mark.parametrize(
    "rounds", [12, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_killed_process_loses_nothing(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    folder, archive = tmp_path / "m", tmp_path / "archive.zip"
    with open_memory(tmp_path / "source") as source:
        imported = {source.add(numbered(number, of="gate")) for number in range(30)}
        source.export_to(archive)
    expected: set[str] = set()
    deleted: set[str] = set()
    added = 0
    for seed in range(1, rounds + 1):
        said = run_and_kill(folder, archive, seed, chance)
        added += len(said["added"])
        deleted |= set(said["deleting"])
        expected |= set(said["added"])
        if said["imported"]:
            expected |= imported
        expected -= deleted
        with open_memory(folder, max_bytes=300_000) as memory:
            check(memory, expected, chance)
            if len(expected) > 300:  # far more, and the budget would demand traces, too
                memory.purge()
                expected.clear()
    print(f"\n{rounds} rounds, {added} adds returned, {len(expected)} logs in the end")
    assert added > rounds


def embedded_in(folder: Path) -> int:
    """How many logs are embedded; none before the store is migrated."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        columns = {row[1] for row in ledger.execute("PRAGMA table_info(logs)")}
        if "embedded" not in columns:
            return 0
        (count,) = ledger.execute("SELECT count(*) FROM logs WHERE embedded").fetchone()
        return int(count)


@pytest.mark.parametrize(
    "rounds", [4, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_store_of_an_older_version_survives_kills_while_it_is_embedded_again(
    tmp_path: Path, rounds: int
) -> None:
    chance, batch = random.Random(rounds), embedding_indexer._EMBED_AT_ONCE
    folder, logs = tmp_path / "m", batch * (3 * rounds + 1)
    traces = old_store(folder, logs)
    done = 0
    for _ in range(rounds):
        receive, send = context.Pipe(duplex=False)
        process = start(embedding, folder, batch, send)
        send.close()
        for _ in range(chance.choice((1, 2, 2, 3))):
            assert receive.poll(60), "the process did not come up"
            receive.recv()
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -9, "it ended by itself: something went wrong in it"
        before, done = done, embedded_in(folder)
        assert before <= done < logs
    assert done > 0
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1) as memory:
        memory.flush()
        assert {log.id: log.trace for log in memory.store.ledger.info()} == traces
        assert memory.store.embeddings.count_missing() == 0
        assert memory.verify() == []
        for number in chance.sample(range(logs), 5):
            (found,) = memory.recall(f"Which is number {number} ?", k=1)
            assert found.trace.task == f"Which is number {number} ?"

"""Other users of the machine, readers that do not end, and rows that somebody else wrote."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import tracemalloc
from contextlib import closing

import pytest
from typer.testing import CliRunner

from lag_integrations import KVLogMemory
from lag_integrations.cli import app
from lag_integrations.store.migrations import HEAD
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import numbered, open_memory

NOBODY = 65534


@pytest.fixture
def open_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
@pytest.mark.parametrize("exists", [False, True])
def test_nobody_else_can_read_a_store(tmp_path, exists):
    folder = tmp_path / "m"
    if exists:
        folder.mkdir()  # somebody else's choice, which stays
    with open_memory(folder) as memory:
        memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        modes = {
            path.relative_to(folder).parts[0]: stat.S_IMODE(path.stat().st_mode)
            for path in folder.iterdir()
        }
    assert stat.S_IMODE(folder.stat().st_mode) == (0o755 if exists else 0o700)
    assert {"ledger.sqlite", "ledger.sqlite-wal", "index", "segments", "locks"} <= modes.keys()
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}


@pytest.mark.parametrize(
    ("version", "whose"), [("0005", "ours"), ("0005", "somebody's"), (HEAD, "shared")]
)
def test_what_earlier_versions_let_others_read_is_taken_from_them(tmp_path, version, whose):
    """Once, when the store is migrated: what is shared later is shared on purpose."""
    if whose == "somebody's" and os.getuid() != 0:
        pytest.skip("only root can give files away")
    folder, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    with open_memory(folder) as memory:
        memory.add(numbered(1))
        memory.flush()
        (segments,) = (folder / "segments").iterdir()
    backup = folder / "backup-0003-20261101T101010Z.sqlite"
    notes = folder / "notes.txt"
    elsewhere.mkdir()
    for file in (backup, notes):
        file.write_text("traces")
    (folder / "backup-0003-20261101T101011Z.sqlite").symlink_to(elsewhere)
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as reader:  # keeps the journal
        reader.execute("SELECT count(*) FROM logs").fetchall()
        ledgers = set(folder.glob("ledger.sqlite*"))
        assert len(ledgers) == 3
        ours = {*ledgers, backup, folder / "index", folder / "locks", segments}
        before = {}
        for path in (*ours, folder, notes, elsewhere):
            before[path] = 0o755 if path.is_dir() else 0o644
            path.chmod(before[path])
            if whose == "somebody's":
                os.chown(path, NOBODY, NOBODY)
        reader.execute("UPDATE alembic_version SET version_num = ?", [version])
        reader.commit()
        with open_memory(folder) as memory:
            assert len(memory.recall(numbered(1).task, k=1)) == 1
            after = {path: stat.S_IMODE(path.stat().st_mode) for path in before}
    changed = {path for path in before if after[path] != before[path]}
    assert changed == (ours if whose == "ours" else set())
    assert not any(after[path] & 0o077 for path in changed)


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_can_read_what_a_command_makes(tmp_path):
    runs = tmp_path / "runs.jsonl"
    runs.write_text(numbered(1).to_json() + "\n")
    done = CliRunner().invoke(app, ["add", str(tmp_path / "m"), str(runs)])
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o700


def test_a_reader_that_does_not_end_holds_up_neither_deletes_nor_adds(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        ids = memory.add_many(numbered(number) for number in range(20))
        memory.flush()
        with closing(sqlite3.connect(tmp_path / "m" / "ledger.sqlite")) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM logs").fetchall()
            took: list[float] = []

            def add() -> None:
                started = time.perf_counter()
                memory.add(numbered(99))
                took.append(time.perf_counter() - started)

            adding = threading.Thread(target=add)
            started = time.perf_counter()
            adding.start()
            assert memory.delete(ids[0], wait=True).logs == 1
            adding.join()
            assert max(time.perf_counter() - started, *took) < 20
        assert memory.store.database.compact(), "later, when nobody reads"
        assert ids[0] not in set(memory.store.ledger.ids())


def test_a_row_that_names_no_file_of_ours_holds_nothing_up(tmp_path, caplog):
    folder = tmp_path / "m"
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    with open_memory(folder) as memory:
        first, second, third = memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
            ledger.execute(
                "UPDATE segments SET file = '../precious.txt' WHERE log_id = ?", (first,)
            )
            ledger.commit()
        assert "segment_missing" in {problem.kind for problem in memory.verify()}
        assert len(memory.recall("the code of vault 0", k=3)) == 3
        found = memory.segments(memory.recall("the code of vault 0", k=3))
        assert len(found) == 3, "it is made again"
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
            ledger.execute(
                "UPDATE segments SET file = '../precious.txt' WHERE log_id = ?", (second,)
            )
            ledger.commit()
        assert memory.delete(second, wait=True).logs == 1
        assert memory.delete(third, wait=True).logs == 1
        memory.repair()
        assert set(memory.store.ledger.ids()) == {first}
    assert outside.read_text() == "mine"
    assert "no file of ours" in caplog.text
    assert "no name of ours" in caplog.text


@pytest.fixture(scope="module")
def large_logs(tmp_path_factory):
    """A store of 40 logs of 2 MB each."""
    folder = tmp_path_factory.mktemp("large") / "m"
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1) as memory:
        for number in range(40):
            memory.add(qa(f"question {number} ?", "Yes.", metadata={"page": "x" * 2_000_000}))
    return folder


def listed(folder):
    assert len(CliRunner().invoke(app, ["ls", str(folder), "--limit", "40"]).output) > 1_000


def looked_through(folder):
    CliRunner().invoke(app, ["ls", str(folder), "--text", "nothing"])


def verified(folder):
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1) as memory:
        assert not [problem for problem in memory.verify() if problem.kind == "trace_damaged"]


def exported(folder):
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1) as memory:
        memory.export_to(folder.parent / "a.zip", overwrite=True)


@pytest.mark.parametrize("look", [listed, looked_through, verified, exported])
def test_large_logs_are_not_all_in_memory_at_once(large_logs, look):
    tracemalloc.start()
    try:
        look(large_logs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * 2**20, f"{peak:,} bytes"

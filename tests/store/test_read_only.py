"""Stores in folders that cannot be written: they are read, and nothing else."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lag_integrations import KVLogMemory
from lag_integrations.cli import app
from lag_integrations.errors import StoreError
from lag_integrations.store.audit import Problem
from lag_integrations.store.backup import BackupResult, restore
from tests.store.model import hash_embedder, tiny_engine
from tests.store.processes import context, numbered, open_memory

NOBODY = 65534
QUESTION = "What is the code of vault 3 ?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_memory(tmp_path / "m", hot_bytes=0) as memory:
        memory.add_many(numbered(number) for number in range(20))
        memory.flush()
        assert memory.recall(QUESTION, k=1)
    return tmp_path / "m"


def make_read_only(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.getuid() == 0:  # who owns it could make it writable again
            os.chown(path, NOBODY, NOBODY)


def give_up_privileges() -> None:
    """Make root one user among others: it writes only what the permissions let it write.

    Another user could not import from a virtual environment that is root's alone.
    """
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def state(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {str(path): (about.st_size, about.st_mtime_ns) for path, about in found}


def run(target: Callable[[Path], Any], folder: Path, answers: Connection) -> None:
    if os.getuid() == 0:
        give_up_privileges()
    try:
        answers.send(target(folder))
    except BaseException as error:
        answers.send(error)


def without_write_permission(target: Callable[[Path], Any], folder: Path) -> Any:
    """What a function gives to somebody who can only read, and changes nothing on the disk."""
    make_read_only(folder)
    before = state(folder)
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(target, folder, theirs), daemon=True)
    process.start()
    assert ours.poll(120)
    answer = ours.recv()
    process.join(60)
    assert state(folder) == before
    if isinstance(answer, BaseException):
        raise answer
    return answer


def recall(folder: Path) -> tuple[str, bool, list[Problem]]:
    engine = tiny_engine()
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1.0) as memory:
        memory.attach(engine)
        (log,) = memory.recall(QUESTION, k=1)
        (segment,) = memory.segments([log])
        right = torch.equal(segment.token_ids, engine.encode(log.trace).token_ids)
        return log.trace.last_response, right, memory.verify()


def test_it_is_recalled_from(folder):
    answer, right, problems = without_write_permission(recall, folder)
    assert (answer, right, problems) == ("The code of vault 3 is 21.", True, [])


def back_up(folder: Path) -> tuple[BackupResult, BackupResult, str, list[Problem]]:
    out = Path(tempfile.mkdtemp())
    try:
        with KVLogMemory(folder, embedder=hash_embedder, min_score=-1.0) as memory:
            assert memory.recall(QUESTION, k=1)
            made = memory.backup_to(out / "backup")
        restored = restore(out / "backup", out / "m")
        with open_memory(out / "m") as memory:
            memory.flush()
            (log,) = memory.recall("What is the code of attic 99 ?", k=1)
            return made, restored, log.trace.last_response, memory.verify()
    finally:
        shutil.rmtree(out)


@pytest.mark.parametrize("journal", [False, True])
def test_a_backup_is_made_of_it(folder, journal):
    if journal:
        folder = snapshot_with_a_journal(folder)
    else:
        add_attic(folder)
    made, restored, answer, problems = without_write_permission(back_up, folder)
    assert made == restored == BackupResult(logs=21, segments=21, missing=0)
    assert (answer, problems) == ("The code of attic 99 is 693.", [])


def add_attic(folder: Path) -> None:
    with open_memory(folder) as memory:
        memory.add(numbered(99, "attic"))
        memory.flush()


def snapshot_with_a_journal(folder: Path) -> Path:
    """As one that was taken while somebody wrote."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM logs").fetchall()
        add_attic(folder)
        shutil.copytree(folder, folder.with_name("snapshot"))
    snapshot = folder.with_name("snapshot")
    (snapshot / "ledger.sqlite-shm").unlink()
    assert (snapshot / "ledger.sqlite-wal").stat().st_size
    return snapshot


def test_a_journal_is_read_too(folder):
    snapshot = snapshot_with_a_journal(folder)
    assert without_write_permission(newest, snapshot) == "The code of attic 99 is 693."


def newest(folder: Path) -> str:
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1.0) as memory:
        (log,) = memory.recall("What is the code of attic 99 ?", k=1)
        return log.trace.last_response


def write(folder: Path) -> list[str]:
    said = []
    with KVLogMemory(folder, embedder=hash_embedder, min_score=-1.0) as memory:
        (log,) = memory.recall(QUESTION, k=1)
        for change in (
            lambda: memory.add(numbered(100)),
            lambda: memory.delete(log.id),
            lambda: memory.feedback(log.id, helped=True),
            lambda: memory.purge(),
            lambda: memory.repair(),
        ):
            try:
                change()
            except StoreError as error:
                said.append(str(error))
    return said


def test_what_would_write_is_refused(folder):
    said = without_write_permission(write, folder)
    assert len(said) == 5
    assert all("can only be read: its folder cannot be written" in text for text in said)


def commands(folder: Path) -> list[tuple[int, str]]:
    runner = CliRunner()
    out = Path(tempfile.mkdtemp())
    done = [
        runner.invoke(app, ["ls", str(folder)]),
        runner.invoke(app, ["stats", str(folder)]),
        runner.invoke(app, ["verify", str(folder)]),
        runner.invoke(app, ["export", str(folder), str(out / "all.zip")]),
        runner.invoke(app, ["backup", str(folder), str(out / "backup")]),
    ]
    shutil.rmtree(out)
    return [(one.exit_code, one.output) for one in done]


def test_it_is_listed_verified_exported_and_backed_up(folder):
    for code, output in without_write_permission(commands, folder):
        assert code == 0, output


def test_an_older_ledger_is_not_migrated(folder):
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0004'")
        connection.commit()
    with pytest.raises(StoreError, match=r"0004.*can only be read"):
        without_write_permission(recall, folder)

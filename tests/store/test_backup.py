"""Backups of stores in use, and stores made of them."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from lag_integrations.errors import BusyError, StoreError
from lag_integrations.store import database
from lag_integrations.store.backup import restore
from lag_integrations.store.log_id import log_id
from tests.conftest import overwrite
from tests.store.processes import adding, context, numbered, open_memory, start


def test_a_backup_while_others_add_has_all_that_was_added_before(tmp_path):
    folder = tmp_path / "m"
    with open_memory(folder) as memory:
        memory.add(numbered(10**6))
        memory.flush()
        receive, send = context.Pipe(duplex=False)
        process = start(adding, folder, send)
        send.close()
        acknowledged = {receive.recv() for _ in range(20)}
        while receive.poll():
            acknowledged.add(receive.recv())
        copied = memory.backup_to(tmp_path / "backup")
        receive.recv()  # it goes on
        process.kill()
        process.join()
    assert copied.logs > len(acknowledged)
    assert copied.segments > 0
    assert restore(tmp_path / "backup", tmp_path / "restored") == copied
    with open_memory(tmp_path / "restored") as restored:
        tasks = {info.trace.task for info in restored.store.ledger.info()}
        assert len(tasks) == copied.logs
        assert {numbered(number).task for number in acknowledged} <= tasks
        first = restored.recall(numbered(10**6).task, k=1)
        key, file, _ = next(
            found for found in restored.store.segments.all_files() if found[0].log_id == first[0].id
        )
        assert restored.store.load(key, file) is not None
        restored.flush()
        found = restored.recall(numbered(max(acknowledged)).task, k=1)
        assert found[0].id == log_id("default", numbered(max(acknowledged)))
        assert restored.verify() == []


def filled(folder: Path, backup: Path | None = None) -> None:
    with open_memory(folder) as memory:
        memory.add_many(numbered(number) for number in range(3))
        memory.flush()
        if backup is not None:
            memory.backup_to(backup)


def test_nobody_else_can_read_a_backup(tmp_path):
    before = os.umask(0o022)
    try:
        filled(tmp_path / "m", tmp_path / "backup")
        restore(tmp_path / "backup", tmp_path / "restored")
    finally:
        os.umask(before)
    for folder in (tmp_path / "backup", tmp_path / "restored"):
        assert {path.name for path in folder.iterdir()} == {"ledger.sqlite", "segments"}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "ledger.sqlite").stat().st_mode) == 0o600
        assert len(list(folder.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_others_may_be_opening_a_restored_store(tmp_path, monkeypatch, stopped):
    """Each makes its journal a write-ahead log, which SQLite refuses while another is at it."""
    filled(tmp_path / "m", tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    ledger = tmp_path / "restored" / "ledger.sqlite"
    with closing(sqlite3.connect(ledger, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        if stopped:
            monkeypatch.setattr(database, "_BUSY", 0.2)
            with pytest.raises(BusyError, match="Others have held the ledger"):
                open_memory(tmp_path / "restored")
            other.rollback()
        else:
            threading.Timer(1.0, other.rollback).start()
        with open_memory(tmp_path / "restored") as memory:
            assert len(memory.recall("the code of vault", k=3)) == 3


def test_a_segment_that_goes_meanwhile_is_only_missing(tmp_path):
    filled(tmp_path / "m")
    next((tmp_path / "m" / "segments").rglob("*.safetensors")).unlink()
    with open_memory(tmp_path / "m") as memory:
        steps: list[tuple[int, int]] = []
        copied = memory.backup_to(tmp_path / "a", progress=lambda *step: steps.append(step))
        assert (copied.logs, copied.segments, copied.missing) == (3, 2, 1)
        assert steps[-1] == (3, 3)
        without = memory.backup_to(tmp_path / "b", segments=False)
        assert (without.logs, without.segments, without.missing) == (3, 0, 3)
    assert restore(tmp_path / "b", tmp_path / "restored").missing == 3
    with open_memory(tmp_path / "restored") as restored:
        found = restored.recall(numbered(1).task, k=3)
        assert len(restored.segments(found)) == 3, "made again"


def test_a_backup_is_made_in_a_new_folder_only(tmp_path):
    filled(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.iterdir())
    with open_memory(tmp_path / "m") as memory:
        for target in (tmp_path / "m", tmp_path / "empty"):
            with pytest.raises(StoreError, match="exists already"):
                memory.backup_to(target)
        with pytest.raises(StoreError, match="cannot be written"):
            memory.backup_to(tmp_path / "no" / "backup")

        def stop(done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            memory.backup_to(tmp_path / "backup", progress=stop)
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_backup_is_refused(tmp_path):
    filled(tmp_path / "m", tmp_path / "backup")
    ledger = tmp_path / "backup" / "ledger.sqlite"
    whole = ledger.read_bytes()
    before = set(tmp_path.iterdir())

    def refused(match: str, target: Path = tmp_path / "restored") -> None:
        with pytest.raises(StoreError, match=match):
            restore(tmp_path / "backup", target)
        assert set(tmp_path.iterdir()) == before

    with closing(sqlite3.connect(ledger)) as connection:
        ((page,),) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'ix_logs_captured'"
        )
        ((size,),) = connection.execute("PRAGMA page_size")
    start = (page - 1) * size
    overwrite(ledger, whole[: start + 8] + bytes(size - 8) + whole[start + size :])
    refused("damaged")
    overwrite(ledger, whole[: len(whole) // 2])
    refused("damaged")
    overwrite(ledger, b"no database at all" * 100)
    refused("damaged")
    overwrite(ledger, b"")
    refused("no ledger")
    ledger.unlink()
    refused("no backup")
    ledger.write_bytes(whole)
    refused("not empty", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "backup", tmp_path / "empty").logs == 3


def test_a_backup_names_no_file_elsewhere(tmp_path, caplog):
    filled(tmp_path / "m", tmp_path / "backup")
    (tmp_path / "precious.txt").write_text("mine")
    for name in ("../../precious.txt", "/etc/passwd", "a\x00b", "", str(tmp_path / "precious.txt")):
        with closing(sqlite3.connect(tmp_path / "backup" / "ledger.sqlite")) as ledger:
            ledger.execute("UPDATE segments SET file = ?", (name,))
            ledger.commit()
        target = tmp_path / f"restored-{len(list(tmp_path.iterdir()))}"
        copied = restore(tmp_path / "backup", target)
        assert (copied.logs, copied.segments, copied.missing) == (3, 0, 3)
        assert {path.name for path in target.rglob("*")} == {"ledger.sqlite", "segments"}


def test_a_ledger_on_a_server_is_backed_up_there(tmp_path, database_url):
    with (
        open_memory(tmp_path / "m", ledger=database_url) as memory,
        pytest.raises(StoreError, match="pg_dump"),
    ):
        memory.backup_to(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()

"""Nothing is ever removed that is not the store's own (attack S0)."""

import contextlib
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from lag_integrations import KVLogMemory
from lag_integrations.errors import StoreError
from lag_integrations.store.budget import Budget
from tests.conftest import overwrite
from tests.store.conftest import logs_in_index
from tests.store.test_faults import filled, open_memory


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_foreign_index_folder_is_refused_and_left_as_it_is(tmp_path):
    thesis = tmp_path / "project" / "index" / "my_thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("five years of work")
    (thesis.parent / "chroma.sqlite3").write_text("of another program")
    before = tree(thesis.parent)
    with pytest.raises(StoreError, match=r"not this store's.*Choose another folder"):
        KVLogMemory(tmp_path / "project").recall("anything")
    assert tree(thesis.parent) == before


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_is_not_followed(tmp_path, dangling):
    precious = tmp_path / "precious"
    if not dangling:
        precious.mkdir()
        (precious / "data").write_text("precious")
        (precious / "lag-state").write_text("writing")  # looks like one of ours, to be made again
        (precious / "chroma.sqlite3").write_text("precious, too")
    before = tree(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "index").symlink_to(precious)
    with pytest.raises(StoreError, match="is a link"):
        KVLogMemory(tmp_path / "store").recall("anything")
    assert {path: data for path, data in tree(tmp_path).items() if path in before} == before
    assert precious.exists() is not dangling


def test_a_link_that_takes_the_folders_place_later_is_not_followed(tmp_path):
    ids = filled(tmp_path / "m", number=2)
    index, precious = tmp_path / "m" / "index", tmp_path / "precious"
    with open_memory(tmp_path / "m") as memory:
        index.rename(precious)
        (precious / "lag-state").write_text("writing")
        before = tree(precious)
        index.symlink_to(precious)
        with pytest.raises(StoreError, match="is a link"):
            memory.store.index.remove(ids)
        assert tree(precious) == before


UUID = "3b241101-e2bb-4255-8caf-4136c566a962"


@pytest.mark.parametrize("place", ["chroma.sqlite3", ".lag-state", f"{UUID}/header.bin"])
@pytest.mark.parametrize("later", [False, True])
def test_a_link_within_the_index_is_not_written_through(tmp_path, place, later):
    (log_id, _) = filled(tmp_path / "m", number=2)
    index, precious = tmp_path / "m" / "index", tmp_path / "precious"
    database, link = (index / "chroma.sqlite3").read_bytes(), index / place

    def plant():
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        precious.write_bytes(database)
        link.symlink_to(precious)

    if not later:
        plant()
        with pytest.raises(StoreError, match=rf"holds a link, {place}"):
            open_memory(tmp_path / "m")
    else:
        with open_memory(tmp_path / "m") as memory:
            plant()
            with pytest.raises(StoreError, match=rf"holds a link, {place}"):
                memory.store.index.remove([log_id])
            with pytest.raises(StoreError, match="holds a link"):
                memory.reindex()
    assert precious.read_bytes() == database


def test_a_database_that_would_be_made_behind_a_link_is_not_made(tmp_path):
    (tmp_path / "m" / "index").mkdir(parents=True)
    (tmp_path / "m" / "index" / "chroma.sqlite3").symlink_to(tmp_path / "made")
    (tmp_path / "m" / "index" / "lag-state").write_text("ours")
    with pytest.raises(StoreError, match="holds a link"):
        open_memory(tmp_path / "m")
    assert not (tmp_path / "made").exists()


def test_a_file_beside_the_index_survives_its_remaking(tmp_path):
    ids = filled(tmp_path / "m", number=2)
    index = tmp_path / "m" / "index"
    (index / "notes.txt").write_text("somebody's")
    (index / f"{UUID}.txt").write_text("somebody's")
    before = {name: data for name, data in tree(index).items() if name.suffix == ".txt"}
    (index / "lag-state").write_text("writing")
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        assert logs_in_index(memory) == set(ids)
        memory.reindex()
        assert logs_in_index(memory) == set(ids)
    assert {name: data for name, data in tree(index).items() if name.suffix == ".txt"} == before


def delete(memory, ids):
    memory.delete(ids[0], wait=True)


def evict(memory, ids):
    memory.store.evictor.enforce(Budget(max_logs=len(ids) - 1))
    memory.store.finish_removals()


def purge(memory, ids):
    memory.purge()


@pytest.mark.parametrize("remove", [delete, evict, purge])
@pytest.mark.parametrize("place", ["quarantine", "quarantine of a log", "model"])
def test_a_link_among_the_segments_is_not_followed(tmp_path, remove, place):
    """What lies behind it may be named as ours are, by whoever planted it."""
    ids = filled(tmp_path / "m", number=3)
    (store,) = (tmp_path / "m" / "segments").iterdir()
    (model,) = store.iterdir()
    precious, aside = tmp_path / "precious", store / "quarantine"
    name = f"{ids[0]}-{'1' * 12}-{'2' * 64}.safetensors"
    if place == "model":
        link = model
        link.rename(precious)
    elif place == "quarantine":
        link = aside
        (precious / ids[0]).mkdir(parents=True)
        (precious / ids[0] / name).write_text("precious")
    else:
        aside.mkdir()
        link = aside / ids[0]
        (precious / "deep").mkdir(parents=True)
        (precious / "deep" / "thesis.txt").write_text("five years of work")
        (precious / name).write_text("precious")
    before = tree(precious)
    link.symlink_to(precious)
    with open_memory(tmp_path / "m") as memory:
        with pytest.raises(StoreError, match=r"deleted, but.*is a link"):
            remove(memory, ids)
        assert tree(precious) == before
        assert ids[0] not in memory.store.ledger.ids()
        link.unlink()
        memory.flush()
        assert memory.store.deletion_queue.next(1) == []
    assert tree(precious) == before


def test_a_damaged_segment_is_not_put_aside_through_a_link(tmp_path, tiny):
    ids = filled(tmp_path / "m", number=2)
    (file, _) = sorted((tmp_path / "m" / "segments").rglob("*.safetensors"))
    overwrite(file, b"damaged")
    precious, aside = tmp_path / "precious", file.parents[2] / "quarantine"
    precious.mkdir()
    aside.symlink_to(precious)
    with open_memory(tmp_path / "m") as memory:
        assert len(memory.segments(memory.recall("vault", k=2), tiny)) == 2, "it is made again"
        assert not list(precious.iterdir())
        aside.unlink()
        memory.delete(ids, wait=True)
    assert not list((tmp_path / "m" / "segments").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_stands_in_a_segments_place_is_not_read(tmp_path, tiny, kind):
    ids = filled(tmp_path / "m", number=1)
    (file,) = (tmp_path / "m" / "segments").rglob("*.safetensors")
    precious = file.rename(tmp_path / "precious")  # as it was, but elsewhere
    file.symlink_to(precious) if kind == "link" else os.mkfifo(file)
    before = precious.read_bytes()
    with open_memory(tmp_path / "m") as memory, ThreadPoolExecutor() as pool:
        made = pool.submit(lambda: memory.segments(memory.recall("vault", k=1), tiny))
        try:
            assert len(made.result(timeout=60)) == 1
        finally:
            if kind == "pipe" and not made.done():
                os.close(os.open(file, os.O_RDWR))  # lets go of who reads it
        segments = (tmp_path / "m" / "segments").rglob("*.safetensors")
        assert sum(one.is_file() and not one.is_symlink() for one in segments) == 1, "made again"
        memory.delete(ids, wait=True)
    assert precious.read_bytes() == before
    assert not list((tmp_path / "m" / "segments").rglob("*.safetensors"))


def test_segments_are_not_read_or_written_through_a_linked_folder(tmp_path, tiny):
    filled(tmp_path / "m", number=2)
    (model,) = (tmp_path / "m" / "segments").glob("*/*")
    precious = model.rename(tmp_path / "precious")
    model.symlink_to(precious)
    before = tree(precious)
    with open_memory(tmp_path / "m") as memory:
        with pytest.raises(StoreError, match="is a link"):
            memory.segments(memory.recall("vault", k=2), tiny)
        assert tree(precious) == before
        assert memory.backup_to(tmp_path / "backup").segments == 0
        model.unlink()
        assert len(memory.segments(memory.recall("vault", k=2), tiny)) == 2
    assert tree(precious) == before


def test_what_somebody_put_beside_damaged_segments_stays(tmp_path):
    ids = filled(tmp_path / "m", number=2)
    (store,) = (tmp_path / "m" / "segments").iterdir()
    aside = store / "quarantine" / ids[0]
    (aside / "deep").mkdir(parents=True)
    for name in ("notes.txt", f"{ids[1]}-{'1' * 12}-{'2' * 64}.safetensors", f"deep/{ids[0]}-01"):
        (aside / name).write_text("somebody's")
    before = tree(aside)
    (aside / f"{ids[0]}-{'1' * 12}-{'2' * 64}.safetensors").write_text("damaged")
    with open_memory(tmp_path / "m") as memory:
        memory.delete(ids[0], wait=True)
    assert tree(aside) == before


@pytest.mark.parametrize("name", ["migrate", "index", "merge-default", "orphans"])
@pytest.mark.parametrize("linked", ["", "file", "folder"])
def test_a_foreign_lock_file_is_not_emptied(tmp_path, name, linked):
    ids = filled(tmp_path / "m", number=2)
    locks, precious = tmp_path / "m" / "locks", tmp_path / "precious" / f"{name}.lock"
    for lock in locks.iterdir():
        lock.unlink()
    if name == "migrate":  # is held when a ledger is made
        (tmp_path / "m" / "ledger.sqlite").unlink()
    precious.parent.mkdir()
    if linked == "folder":
        locks.rmdir()
        locks.symlink_to(precious.parent)
    elif linked:
        (locks / f"{name}.lock").symlink_to(precious)
    else:
        precious = locks / f"{name}.lock"
    precious.write_text("precious")
    with contextlib.suppress(StoreError), open_memory(tmp_path / "m") as memory:
        memory.store.vectors.rebuild()
        memory.delete(ids[0], wait=True)
        memory.purge()
    assert precious.read_text() == "precious"
    (locks if linked == "folder" else locks / f"{name}.lock").unlink()
    with open_memory(tmp_path / "m") as memory:
        assert memory.verify() == []


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path):
    for place in ("plain", "linked"):
        (tmp_path / place).mkdir()
    ledger = tmp_path / "plain" / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.commit()
    (tmp_path / "linked" / "ledger.sqlite").symlink_to(tmp_path / "other.sqlite")
    before = tree(tmp_path)
    for place, why in (("plain", "another program"), ("linked", "is a link")):
        with pytest.raises(StoreError, match=rf"{why}.*Choose another folder"):
            KVLogMemory(tmp_path / place)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_a_ledgers_journal_is_no_link(tmp_path, end):
    filled(tmp_path / "m", number=2)
    (tmp_path / "m" / f"ledger.sqlite{end}").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="is a link"):
        KVLogMemory(tmp_path / "m")
    assert not (tmp_path / "precious").exists()

"""Damage of every kind: detected, put aside, made again; never a wrong answer."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from lag_integrations import KVLogMemory
from lag_integrations.errors import EncodingError, LAGError, StoreError
from lag_integrations.store.audit import Audit
from tests.conftest import overwrite, qa
from tests.store.conftest import logs_in_index
from tests.store.model import hash_embedder
from tests.store.processes import numbered, open_memory


def filled(folder: Path, number: int = 8, **settings) -> list[str]:
    """A store with some logs, closed; gives their ids."""
    with open_memory(folder, **settings) as memory:
        ids = memory.add_many(numbered(index) for index in range(number))
        memory.flush()
        assert memory.verify() == []
    return ids


def right(memory: KVLogMemory, ids: list[str], tiny) -> None:
    """Each log is found, with the segment that it must have."""
    for number, key in enumerate(ids):
        (found,) = memory.recall(f"What is the code of vault {number} ?", k=1)
        assert found.id == key
        segment, fresh = memory.segments([found], tiny)[0], tiny.encode(numbered(number))
        assert torch.equal(segment.token_ids, fresh.token_ids)
        for mine, theirs in zip(segment.slots[0], fresh.slots[0], strict=True):
            torch.testing.assert_close(mine, theirs)  # encoded with others, or alone


def kinds(problems) -> set[str]:
    return {problem.kind for problem in problems}


def test_a_damaged_segment_is_found_and_made_again(tmp_path, tiny):
    ids = filled(tmp_path / "m")
    files = sorted((tmp_path / "m" / "segments").rglob("*.safetensors"))
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2] ^= 1
    overwrite(files[0], data)
    overwrite(files[1], files[1].read_bytes()[:-1])
    overwrite(files[2], files[3].read_bytes())  # whole, but another log's
    files[4].unlink()
    with open_memory(tmp_path / "m") as memory:
        problems = memory.verify()
        assert kinds(problems) == {"segment_damaged", "segment_missing"}
        assert len(problems) == 4
        right(memory, ids, tiny)
        memory.flush()
        assert memory.verify() == []
    assert len(list((tmp_path / "m" / "segments").glob("*/quarantine/*/*"))) == 3


def test_repair_without_a_model_leaves_no_damage(tmp_path, tiny):
    ids = filled(tmp_path / "m")
    files = sorted((tmp_path / "m" / "segments").rglob("*.safetensors"))
    overwrite(files[0], b"")
    files[1].unlink()
    orphan = files[2].parent / f"{'0' * 32}-{'1' * 12}-{'2' * 64}.safetensors"
    orphan.write_bytes(b"x")
    strangers = [tmp_path / "m" / "segments" / "thesis.docx", files[2].parent / "notes.txt"]
    for stranger in strangers:
        stranger.write_bytes(b"somebody's work")
    leftover = files[2].parent / ".abc.part"
    leftover.write_bytes(b"x")
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        assert "orphan_file" not in kinds(memory.verify()), "it may be a write that is going on"
        old = time.time() - 3600
        os.utime(orphan, (old, old))
        for file in (leftover, *strangers):
            os.utime(file, (old, old))
        assert kinds(memory.repair()) == {"segment_damaged", "segment_missing", "orphan_file"}
        assert memory.verify() == []
        assert not orphan.exists()
        assert not leftover.exists()
        assert all(stranger.exists() for stranger in strangers), "not ours to remove"
        right(memory, ids, tiny)


class FailingBucket(MemoryFileSystem):
    """A bucket that does not answer for a while."""

    protocol = "failing"
    failing = False

    def cat_file(self, path, *arguments, **settings):
        if FailingBucket.failing:
            raise TimeoutError("the bucket does not answer")
        return super().cat_file(path, *arguments, **settings)


@pytest.mark.parametrize("fault", ["bucket", "zstandard"])
def test_segments_that_cannot_be_read_for_now_are_left_as_they_are(
    tmp_path, tiny, monkeypatch, fault
):
    fsspec.register_implementation("failing", FailingBucket, clobber=True)
    settings = {"segments": f"failing://{uuid4().hex}", "codec": "native+zstd", "hot_bytes": 0}
    ids = filled(tmp_path / "m", number=3, **settings)
    with open_memory(tmp_path / "m", **settings) as memory:
        stored = list(memory.store.segments.all_files())
        with monkeypatch.context() as context:
            if fault == "bucket":
                context.setattr(FailingBucket, "failing", True)
            else:
                context.setitem(sys.modules, "zstandard", None)
            assert kinds(memory.verify()) == {"segment_unreadable"}
            assert kinds(memory.repair()) == {"segment_unreadable"}
            exported = memory.export_to(tmp_path / "all.zip", segments=True)
            assert (exported.logs, exported.segments, exported.skipped) == (3, 0, 3)
        assert list(memory.store.segments.all_files()) == stored
        assert memory.verify() == []
        right(memory, ids, tiny)
        assert memory.import_from(tmp_path / "all.zip").logs == 3


@pytest.mark.parametrize(
    "damage", ["deleted", "sqlite cut", "vectors emptied", "other store's", "died"]
)
def test_a_damaged_index_is_made_again(tmp_path, tiny, damage):
    ids = filled(tmp_path / "m", number=12)
    index = tmp_path / "m" / "index"
    if damage == "deleted":
        shutil.rmtree(index)
    elif damage == "sqlite cut":
        database = index / "chroma.sqlite3"
        database.write_bytes(database.read_bytes()[:5_000])
    elif damage == "vectors emptied":
        connection = sqlite3.connect(index / "chroma.sqlite3")
        connection.execute("DELETE FROM embeddings_queue")
        connection.commit()
        connection.close()
        for file in index.rglob("*.bin"):
            file.write_bytes(b"")
    elif damage == "other store's":
        filled(tmp_path / "other", number=3)
        shutil.rmtree(index)
        shutil.copytree(tmp_path / "other" / "index", index)
    else:
        (index / "lag-state").write_text("writing")
    with open_memory(tmp_path / "m") as memory:
        right(memory, ids, tiny)
        memory.flush()
        right(memory, ids, tiny)
        assert memory.verify() == []
        assert logs_in_index(memory) == set(ids)


def test_an_index_that_lost_or_invented_logs_is_repaired(tmp_path, tiny):
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        memory.store.index.remove(ids[:2])
        memory.store.index.add([("f" * 32, 0)], hash_embedder(["stranger"]))
        (problem,) = memory.verify()
        assert problem.kind == "index_differs"
        assert "4 entries are missing in it, 1 are unknown" in problem.detail
        memory.repair()
        assert memory.verify() == []
        right(memory, ids, tiny)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
def test_a_cut_journal_is_consistent(tmp_path, tiny, keep):
    """A WAL that lost its end: SQLite goes back to an earlier moment, everything else follows."""
    ids = filled(tmp_path / "m", number=4)
    memory = open_memory(tmp_path / "m")
    memory.add_many(numbered(index) for index in range(4, 12))
    memory.flush()
    shutil.copytree(tmp_path / "m", tmp_path / "copy")  # with its journal, as after a crash
    memory.close()
    journal = tmp_path / "copy" / "ledger.sqlite-wal"
    data = journal.read_bytes()
    assert data
    journal.write_bytes(data[: int(len(data) * keep)])
    (tmp_path / "copy" / "ledger.sqlite-shm").unlink()
    with open_memory(tmp_path / "copy") as memory:
        right(memory, ids, tiny)
        memory.flush()
        Audit(memory.store, min_age=0).repair()
        memory.flush()
        assert Audit(memory.store, min_age=0).verify() == []
        again = memory.add_many(numbered(index) for index in range(12))
        memory.flush()
        right(memory, again, tiny)


def test_a_damaged_trace_is_never_given(tmp_path, tiny):
    ids = filled(tmp_path / "m", number=3)
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("UPDATE logs SET trace = replace(trace, 'is 7', 'is 8') WHERE id = ?", (ids[1],))
    ledger.execute("UPDATE logs SET trace = substr(trace, 1, 50) WHERE id = ?", (ids[2],))
    ledger.commit()
    ledger.close()
    with open_memory(tmp_path / "m") as memory:
        assert [log.id for log in memory.recall("vault")] == ids[:1]
        problems = memory.verify()
        assert {problem.subject for problem in problems} == set(ids[1:])
        assert kinds(problems) == {"trace_damaged"}
        memory.add(numbered(1))  # the run is captured again, and is whole again
        memory.add(numbered(2))
        memory.flush()
        right(memory, ids, tiny)
        assert memory.verify() == []


def test_a_damaged_ledger_is_said_to_be_so(tmp_path):
    filled(tmp_path / "m", number=40)
    ledger = tmp_path / "m" / "ledger.sqlite"
    data = bytearray(ledger.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = os.urandom(64)
    ledger.write_bytes(data)

    def use() -> None:
        with open_memory(tmp_path / "m") as memory:
            assert "ledger_damaged" in kinds(memory.verify())
            memory.flush()

    with pytest.raises(StoreError, match=r"ledger.*restore"):
        use()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk, tiny):
    """Adding fails clearly when the disk is full; what was added is there, and goes on later."""
    memory = open_memory(small_disk / "m")
    ids, errors = [memory.add(numbered(0))], []
    memory.flush()  # however soon the disk is full, one can be recalled
    stone = small_disk / "stone"
    stone.write_bytes(b"x" * 4_000_000)
    for number in range(1, 2_000):
        try:
            ids.append(memory.add(numbered(number)))
        except StoreError as error:
            errors.append(str(error))
            break
    assert errors, "the disk did not become full"
    assert "space" in errors[0]
    assert "vault" not in errors[0], "no content in errors"
    with pytest.raises(LAGError):
        memory.flush()
    for number in range(3):  # what can be recalled is right
        for log in memory.recall(f"What is the code of vault {number} ?", k=1):
            assert log.id in ids
    memory.close()
    stone.unlink()
    for file in (small_disk / "m" / "segments").rglob("*.safetensors"):
        file.unlink()  # someone makes room
    with open_memory(small_disk / "m", max_bytes=400_000) as memory:
        assert set(ids) <= set(memory.store.ledger.ids())
        try:
            memory.flush()
        except EncodingError:
            pytest.fail("nothing is wrong with the logs")
        memory.repair()
        memory.flush()
        assert Audit(memory.store, min_age=0).verify() == []
        right(memory, ids[:3], tiny)


def test_an_index_that_fails_to_answer_is_not_thrown_away(tmp_path, tiny, monkeypatch, caplog):
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        memory.recall("vault")
        works = memory.store.index.search

        def fails(*_):
            raise StoreError("too many open files")

        monkeypatch.setattr(memory.store.index, "search", fails)
        right(memory, ids, tiny)  # compared one by one
        assert caplog.text.count("too many open files") == 1
        monkeypatch.setattr(memory.store.index, "search", works)
        right(memory, ids, tiny)
        assert logs_in_index(memory) == set(ids)
        assert memory.verify() == []


def test_an_index_made_again_by_another_process(tmp_path, tiny):
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as one, open_memory(tmp_path / "m") as other:
        right(one, ids, tiny)
        other.store.index.reset()
        right(one, ids, tiny)
        other.flush()
        right(one, ids, tiny)
        assert one.verify() == other.verify() == []


def test_a_file_that_cannot_be_removed_holds_up_nothing(tmp_path, monkeypatch):
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        works = memory.store.segment_files.remove
        poison = memory.store.segments.files(next(memory.store.segments.all_files())[0], ids)[
            ids[0]
        ]

        def remove(name):
            if name == poison:
                raise PermissionError(name)
            works(name)

        monkeypatch.setattr(memory.store.segment_files, "remove", remove)
        with pytest.raises(StoreError, match="deleted, but"):
            memory.delete(ids[:3], wait=True)
        assert {log.id for log in memory.recall("vault", k=9)} == set(ids[3:])
        memory.add(numbered(99))
        memory.flush()
        assert len(memory.recall("vault", k=9)) == 6
        assert kinds(memory.verify()) == {"removal_pending"}
    with open_memory(tmp_path / "m") as memory:  # the next process has better luck
        memory.flush()
        assert memory.verify() == []


def test_nothing_is_left_of_a_deleted_log(tmp_path):
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        memory.add(qa("Where does xylophanes live ?", "In the garden ."))
        memory.flush()
        (secret,) = memory.recall("Where does xylophanes live ? In the garden .", k=1)
        (file,) = (tmp_path / "m" / "segments").rglob(f"{secret.id}*")
        overwrite(file, b"damaged")
        memory.store.segment_cache.clear()
        memory.segments([secret])  # goes to quarantine
        memory.delete(secret.id, wait=True)
        left = [path for path in (tmp_path / "m").rglob("*") if path.is_file()]
        assert not [path for path in left if b"xylophanes" in path.read_bytes()]
        assert not [path for path in left if secret.id in str(path)]
        assert len(ids) == memory.store.ledger.count()


def test_a_fork_does_not_use_its_parents_memory(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        memory.add(numbered(1))
        memory.flush()
        child = os.fork()
        if child == 0:
            try:
                memory.recall("vault")
                os._exit(1)
            except StoreError as error:
                memory.close()
                os._exit(0 if "forked" in str(error) else 2)
        assert os.waitpid(child, 0)[1] == 0
        assert len(memory.recall("vault")) == 1

"""Others that hold something and do not go on: nobody waits for long, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy

from lag_integrations import KVLogMemory
from lag_integrations.errors import BusyError, StoreError
from lag_integrations.memory import patient_locks, segment_indexer
from lag_integrations.store import database, locks, time_limits
from lag_integrations.store.chroma import folder as chroma
from lag_integrations.store.time_limits import lift_time_limits
from tests.helpers import stored_segments
from tests.store.conftest import logs_in_index
from tests.store.model import hash_embedder
from tests.store.processes import context, holding, numbered, open_memory, start


@contextmanager
def stopped(folder: Path, what: str) -> Iterator[None]:
    """A process that holds something, and was stopped."""
    receive, send = context.Pipe(duplex=False)
    process = start(holding, folder, what, send)
    try:
        assert receive.poll(120), "the process did not come up"
        receive.recv()
        os.kill(process.pid, signal.SIGSTOP)
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < seconds


@contextmanager
def hasty() -> Iterator[None]:
    """Nobody waits as long as they usually do; what has to work on a busy machine comes after."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chroma, "_WRITE_WAIT", 0.25)
        patch.setattr(locks, "_PATIENCE", 0.5)
        patch.setattr(locks, "_WAIT", 0.25)
        patch.setattr(patient_locks, "TWICE_AFTER", 0.25)
        patch.setattr(patient_locks, "ALL_TWICE_AFTER", 0.25)
        patch.setattr(segment_indexer, "ALL_TWICE_AFTER", 0.25)
        yield


def filled(folder: Path, number: int = 8) -> list[str]:
    with open_memory(folder) as memory:
        ids = memory.add_many(numbered(index) for index in range(number))
        memory.flush()
    return ids


def test_recall_does_not_wait_for_a_stopped_process_with_the_index(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = filled(tmp_path / "m")
    with KVLogMemory(tmp_path / "m", embedder=hash_embedder, min_score=-1) as memory:
        before = memory.store.index.identity()
        with stopped(tmp_path / "m", "index"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(chroma, "_WRITE_WAIT", 2.0)
            for number, limit in ((3, 20), (4, 2), (5, 2)):  # one of them waits
                with within(limit):
                    (found,) = memory.recall(f"What is the code of vault {number} ?", k=1)
                assert found.id == ids[number]
            more = memory.add_many(numbered(index) for index in range(100, 250))
            memory.embed_pending()
            with within(20):
                (found,) = memory.recall("What is the code of vault 233 ?", k=1)
            assert found.id == more[133]
            with within(20):
                assert memory.delete(ids[0]).logs == 1
        assert caplog.text.count("Meanwhile, all embeddings are compared") == 1
        assert memory.store.index.identity() == before, "it was not made again"
        (found,) = memory.recall("What is the code of vault 7 ?", k=1)
        assert found.id == ids[7]
        memory.flush()
        assert memory.store.index.identity() == before
        assert memory.verify() == []
        assert logs_in_index(memory) == {*ids[1:], *more}


@pytest.mark.parametrize("what", ["index", "merge"])
def test_who_has_to_wait_is_told_after_a_while(tmp_path: Path, what: str) -> None:
    ids = filled(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        before = memory.store.index.identity()
        with hasty(), stopped(tmp_path / "m", what):
            memory.add(numbered(99))
            for wait in (
                memory.flush,
                lambda: memory.delete(ids[0], wait=True),
                memory.verify,
                memory.store.vectors.rebuild,
                memory.purge,
            ):
                with within(60), pytest.raises(BusyError, match=rf"{what}.*stopped"):
                    wait()
                memory.add(numbered(99))
        memory.flush()
        assert memory.store.index.identity() == before, "it was not made again"
        assert set(memory.store.ledger.ids()) == logs_in_index(memory)
        assert memory.verify() == []


@pytest.mark.parametrize("what", ["embed", "encode"])
def test_what_a_stopped_process_is_at_is_done_without_it(tmp_path: Path, what: str) -> None:
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        with hasty(), stopped(tmp_path / "m", what):
            ids = memory.add_many(numbered(index) for index in range(40))
            with within(20):
                memory.embed_pending()
            found = memory.get(ids[:3])
            with within(20):
                assert len(memory.segments(found)) == 3
            with within(60):
                memory.flush()
            assert None not in stored_segments(memory, memory.get(ids))
        assert memory.verify() == []


def test_a_stopped_writer_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = filled(tmp_path / "m")
    monkeypatch.setattr(database, "_BUSY", 1)
    with open_memory(tmp_path / "m") as memory:
        with stopped(tmp_path / "m", "ledger"):
            memory.recall("What is the code of vault 1 ?")
            errors: list[BaseException] = []

            def add(number: int) -> None:
                try:
                    memory.add(numbered(number))
                except StoreError as error:
                    errors.append(error)

            threads = [threading.Thread(target=add, args=(100 + n,)) for n in range(8)]
            with within(30):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert [type(error) for error in errors] == [BusyError] * 8
            assert "stopped" in str(errors[0])
        monkeypatch.undo()
        memory.store.database.engine.dispose()  # new connections wait as usual
        memory.add(numbered(100))
        memory.flush()
        assert memory.store.ledger.count() == len(ids) + 1
        assert memory.verify() == []


def test_a_new_connection_does_not_wait_for_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads read at once than did before."""
    filled(tmp_path / "m", 3)
    monkeypatch.setattr(database, "_BUSY", 1)
    with (
        open_memory(tmp_path / "m") as memory,
        stopped(tmp_path / "m", "ledger"),
        ExitStack() as readers,
    ):
        for _ in range(8):
            connection = readers.enter_context(memory.store.database.read())
            assert connection.exec_driver_sql("SELECT count(*) FROM logs").scalar() == 3


def test_deleting_waits_for_the_ledger_only(tmp_path: Path, monkeypatch) -> None:
    ids = filled(tmp_path / "m", 40)
    removed: list[int] = []
    with open_memory(tmp_path / "m") as memory:
        remove = memory.store.index.remove

        def counted(gone):
            removed.append(len(gone))
            remove(gone)

        monkeypatch.setattr(memory.store.index, "remove", counted)
        with memory.store.locks.hold("merge-default"):
            with within(10):
                for key in ids[:30]:
                    assert memory.delete(key).logs == 1
            assert not {log.id for log in memory.recall("vault", k=40)} & set(ids[:30])
            assert set(ids) == logs_in_index(memory)
        memory.flush()
        assert set(ids[30:]) == logs_in_index(memory)
        assert len(removed) < 5 < 30 <= sum(removed)
        files = {name.rpartition("/")[2][:32] for name in memory.store.segment_files.names("")}
        assert files == set(ids[30:])
        assert memory.delete(ids[30]).logs == 1
    with open_memory(tmp_path / "m") as memory:  # closed at once, so the next one has to
        for _ in range(600):
            if not memory.store.deletion_queue.next(1):
                break
            time.sleep(0.05)
        assert logs_in_index(memory) == set(ids[31:])
        assert memory.verify() == []


def test_a_removal_is_not_taken_for_another_of_the_same_number(tmp_path: Path, monkeypatch) -> None:
    """SQLite numbers rows again: one who comes late must not strike off what is not yet gone."""
    first, second, *others = filled(tmp_path / "m", 4)
    monkeypatch.setattr(KVLogMemory, "_run_once", lambda *_, **__: False)  # no worker
    with open_memory(tmp_path / "m") as late, open_memory(tmp_path / "m") as memory:
        hold = late.store.locks.hold

        def slowly(name, **settings):
            if name.startswith("merge"):
                monkeypatch.setattr(late.store.locks, "hold", hold)
                memory.store.retry_removals()
                memory.store.delete([second])
            return hold(name, **settings)

        monkeypatch.setattr(late.store.locks, "hold", slowly)
        late.store.delete([first])
        late.store.sweep()
        assert second in {removal.log_id for removal in memory.store.deletion_queue.next(9)}
        memory.store.retry_removals()
        assert logs_in_index(memory) == set(others)
        assert memory.verify() == []


def test_locks_and_statements_of_a_server(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"lock_timeout": "300ms", "statement_timeout": "600ms"}
    with open_memory(tmp_path / "m", ledger=database_url) as memory:
        memory.flush()
        key = memory.add(numbered(1))
        held = memory.store.locks.hold("merge-default")
        with hasty(), held, within(20), pytest.raises(BusyError, match="merge-default"):
            memory.flush()
        monkeypatch.setattr(time_limits, "_LIMITS", limits)
        memory.store.database.engine.dispose()  # limits are those of new connections
        other = sqlalchemy.create_engine(database_url)
        with other.begin() as connection:
            connection.exec_driver_sql("SELECT * FROM logs FOR UPDATE")
            with within(20), pytest.raises(BusyError, match="stopped"):
                memory.delete(key)
        other.dispose()
        long = memory.store.database.read()
        with within(20), pytest.raises(StoreError, match="timeout"), long as connection:
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        with memory.store.database.write() as connection:
            lift_time_limits(connection)
            connection.exec_driver_sql("SELECT pg_sleep(0.8)")
        monkeypatch.undo()
        memory.store.database.engine.dispose()
        assert memory.delete(key, wait=True).logs == 1
        memory.reindex()
        assert memory.verify() == []

"""What was deleted is nowhere any more: files, indexes, tables, and what others hold."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from lag_integrations import KVLogMemory
from lag_integrations.langchain import LAGChatModel
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import numbered, open_memory

SECRET = "Zanzibarquux"
TRACE = qa(f"Where does {SECRET} live ?", f"{SECRET} lives at 12 Elm Street.")


def leave_behind(memory: KVLogMemory, log_id: str, *, age: float = 0.0) -> list[Path]:
    """Files as a process leaves them that is killed while it stores a segment."""
    ((_, name, _),) = memory.store.segments.all_files()
    folder = (memory.path / "segments" / name).parent
    left = [
        folder / f"{log_id}-{'1' * 12}-{'2' * 64}.safetensors",
        folder / f".{log_id}-01-x_y.part",
    ]
    for file in left:
        file.write_text("tokens of the trace")
        os.utime(file, (time.time() - age,) * 2)
    return left


def test_files_that_were_never_recorded_go_with_their_log(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        log_id = memory.add(TRACE)
        memory.flush()
        left = leave_behind(memory, log_id)
        memory.delete(log_id, wait=True)
        assert not any(file.exists() for file in left)


def test_a_log_that_is_added_again_keeps_its_new_segment(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        memory._worker.stop()
        log_id = memory.add(TRACE)
        memory.flush()
        memory.delete(log_id)
        memory.add(TRACE)
        (log,) = memory.get(log_id)
        memory.segments([log])
        memory.flush()
        assert memory.verify() == []
        assert len(list(memory.store.segments.all_files())) == 1


@pytest.mark.parametrize(("age", "gone"), [(0.0, False), (3_000.0, True)])
def test_files_of_no_log_are_swept_by_the_worker(tmp_path, age, gone):
    with open_memory(tmp_path / "m") as memory:
        memory.add(TRACE)
        memory.flush()
        left = leave_behind(memory, "0" * 32, age=age)
        others = memory.path / "segments" / "notes.safetensors"
        others.write_text("not ours")
        os.utime(others, (0, 0))
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        assert [file.exists() for file in left] == [not gone] * 2
        assert others.exists()


def test_others_let_go_at_their_next_use(tmp_path, tiny):
    """Segments in memory, and what the model read lately."""
    with open_memory(tmp_path / "m") as memory, open_memory(tmp_path / "m") as other:
        log_id = other.add(TRACE)
        other.flush()
        memory.attach(tiny)
        model = LAGChatModel(tiny, memory=memory, max_tokens=2)
        assert model.invoke(TRACE.task).response_metadata["lag"]["log_ids"] == [log_id]
        memory.segments(memory.get(log_id), tiny)
        assert len(memory.store.segment_cache) == 1
        assert SECRET in read_lately(tiny)
        other.delete(log_id)
        model.invoke("Hello")
        assert len(memory.store.segment_cache) == 0
        assert read_lately(tiny)
        assert SECRET not in read_lately(tiny)


def test_an_answer_that_goes_on_keeps_nothing_of_it(tmp_path, tiny):
    with open_memory(tmp_path / "m") as memory:
        log_id = memory.add(TRACE)
        memory.flush()
        model = LAGChatModel(tiny, memory=memory, max_tokens=8)
        stream = model.stream(TRACE.task, logs_as_text=True)
        next(stream)
        memory.delete(log_id, wait=True)
        model.invoke("Hello", max_tokens=2)
        list(stream)
        assert read_lately(tiny)
        assert SECRET not in read_lately(tiny)


@pytest.mark.parametrize("by", ["itself", "another"])
def test_nothing_in_memory_holds_what_was_deleted(tmp_path, tiny, by):
    with open_memory(tmp_path / "m") as memory, open_memory(tmp_path / "m") as other:
        memory.attach(tiny)
        secret = ["zq", *"1a2b3c"]

        def use() -> str:
            text = "".join(secret)
            log_id = memory.add(qa(f"Who is {text} ?", f"{text} is a friend."))
            memory.flush()
            LAGChatModel(tiny, memory=memory, max_tokens=2).invoke(f"Tell me of {text} .")
            return log_id

        def holds(one: object, held: object) -> bool:
            return any(each is held for each in gc.get_referents(one))

        def holders() -> Iterator[str]:
            gc.collect()
            text = "".join(secret)
            raw = text.encode()
            objects = gc.get_objects()[::-1]  # the newest first: they hold it, if any do
            for start in range(0, len(objects), 1_000):  # one by one takes twice as long
                some = objects[start : start + 1_000]
                for held in gc.get_referents(*some):
                    if (type(held) is str and text in held and held != text) or (
                        type(held) is bytes and raw in held and held != raw
                    ):
                        yield from (str(type(one)) for one in some if holds(one, held))

        log_id = use()
        assert any(holders())
        (memory if by == "itself" else other).delete(log_id, wait=True)
        LAGChatModel(tiny, memory=memory, max_tokens=2).invoke("Hello")
        assert list(holders()) == []


def entries(engine):
    return list(engine._runner.prefixes._entries.values())


def read_lately(engine):
    """The texts in the prefix cache; this tokenizer decodes letter by letter."""
    tokens = (
        [piece for piece in entry.items if isinstance(piece, int)] for entry in entries(engine)
    )
    return " | ".join(engine.tokenizer.decode(some).replace(" ", "") for some in tokens)


def test_a_purge_leaves_nothing_in_the_index(tmp_path):
    settings = {"embedder": hash_embedder, "min_score": -1.0}
    with (
        KVLogMemory(tmp_path / "m", **settings) as memory,
        KVLogMemory(tmp_path / "m", namespace="o", **settings) as other,
    ):
        for each in (memory, other):
            each.add_many(numbered(number, each.namespace) for number in range(300))
            each.flush()
        entries, _ = memory.store.embeddings.vectors()
        ids = {log_id.encode() for log_id, _ in entries}
        folder = tmp_path / "m" / "index"
        before = [path for path in folder.iterdir() if path.is_dir()]
        memory.purge()
        for file in folder.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            assert not any(log_id in content for log_id in ids), file
        left = [path for path in folder.iterdir() if path.is_dir()]
        assert len(left) == len(before) - 1
        (log,) = other.recall("What is the code of o 5 ?", k=1)
        assert log.trace.last_response == "The code of o 5 is 35."
        assert other.verify() == []


def test_a_purge_leaves_nothing_in_postgresql(tmp_path, database_url):
    settings = {"ledger": database_url, "embedder": hash_embedder, "min_score": -1.0}
    with KVLogMemory(tmp_path / "m", **settings) as memory:
        memory.add_many([TRACE, *(numbered(number) for number in range(20))])
        memory.flush()
        engine = sqlalchemy.create_engine(database_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            server = Path(connection.exec_driver_sql("SHOW data_directory").scalar_one())
            mine = "SELECT oid FROM pg_database WHERE datname = current_database()"
            folder = server / "base" / str(connection.exec_driver_sql(mine).scalar_one())
            connection.exec_driver_sql("CHECKPOINT")
            assert holding(folder, SECRET)
            memory.purge()
            connection.exec_driver_sql("CHECKPOINT")
            assert not holding(folder, SECRET)
            assert not holding(server / "base" / "pgsql_tmp", SECRET)  # of all databases
        engine.dispose()


def holding(folder: Path, text: str) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_a_receipt_says_what_remains_until_when(open_store, tiny):
    """On each of the ways to keep a store."""
    with open_store() as memory:
        log_id = memory.add(TRACE)
        memory.flush()
        receipt = memory.delete([log_id, "unknown"])
        assert (receipt.ids, receipt.logs) == ((log_id,), 1)
        assert "ledger" in receipt.removed
        left = [str(one) for one in receipt.remains]
        assert any("until the worker has removed them" in one for one in left)
        assert any(one.startswith("vectors in the files of the") for one in left)
        assert any("PostgreSQL" in one for one in left) != memory.store.database.is_sqlite
        memory.flush()
        memory.add(TRACE)
        memory.flush()
        purged = memory.purge()
        served = memory.store.index.is_served
        assert purged.logs == 1
        assert any("Chroma server" in str(one) for one in purged.remains) == served
        assert not any("dead rows" in str(one) for one in purged.remains)

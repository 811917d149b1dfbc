"""Schema versions: older stores are migrated after a backup, newer ones refused."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from lag_integrations.errors import StoreError
from lag_integrations.store import migrations
from lag_integrations.store.chroma.folder import ChromaFolder
from lag_integrations.store.database import Database
from lag_integrations.store.log_id import log_id
from lag_integrations.store.schema import metadata
from lag_integrations.traces.trace import Trace
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import open_memory

FIRST = "0002"
"""The revision that `migrations` begin with."""
LOG = (
    "INSERT INTO logs VALUES (:id, 'default', :hash, 'success', 1795168800.5, 1795168800.5, :seen, "
    "0, 4, 0, true, 10, :trace)"
)


def old_store(folder: Path, logs: int = 3) -> dict[str, Trace]:
    """A store of the first schema, with one embedding a log; gives its traces by id."""
    folder.mkdir()
    traces = {}
    engine = create_engine(f"sqlite:///{folder / 'ledger.sqlite'}")
    with engine.begin() as connection:
        command.upgrade(migrations.alembic_config(connection), FIRST)

        def execute(statement: str, **values: object) -> None:
            connection.execute(text(statement), values)

        for number in range(logs):
            trace = qa(f"Which is number {number} ?", "That one .", metadata={"number": number})
            key = log_id("default", trace)
            traces[key] = trace
            row = {"hash": trace.content_hash, "seen": number + 1, "trace": trace.to_json()}
            execute(LOG, id=key, **row)
            execute("INSERT INTO tags VALUES (:id, 'number', 0, NULL, :n)", id=key, n=number)
            file = f"abc/last_response/native/{key}.safetensors"
            (folder / "segments" / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / "segments" / file).write_bytes(b"the old format")
            execute(
                "INSERT INTO segments VALUES (:id, 'abc', 'last_response', 'native', :file, 3, 14)",
                id=key,
                file=file,
            )
            (vector,) = hash_embedder([key])
            execute(
                "INSERT INTO embeddings VALUES (:id, 'default', 'old', :vector)",
                id=key,
                vector=(vector / 7).astype("<f4").tobytes(),
            )
        execute("INSERT INTO models VALUES ('abc', '{}')")
        (probe,) = hash_embedder(["The quick brown fox jumps over the lazy dog."])
        probe /= (probe**2).sum() ** 0.5
        embedder = {"name": "function", "vector": [round(float(x), 5) for x in probe]}
        execute("INSERT INTO settings VALUES ('embedder', :value)", value=json.dumps(embedder))
        execute("INSERT INTO settings VALUES ('store_id', 'abcdefabcdef')")
    engine.dispose()
    return traces


def test_an_old_store_is_migrated_after_a_backup(tmp_path):
    traces = old_store(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        logs = {log.id: log for log in memory.store.ledger.info()}
        assert {key: log.trace for key, log in logs.items()} == traces
        assert sorted(log.times_seen for log in logs.values()) == [1, 2, 3]
        assert {log.captured_at for log in logs.values()} == {1795168800.5}
        assert len(memory.recall("Which is number 1 ?")) == 3
        assert len(memory.recall("Which is number 1 ?", where={"number": {"$gt": 0}})) == 2
        assert memory.verify() == []
        assert not list((tmp_path / "m" / "segments" / "abc").rglob("*.safetensors"))
        assert "abc" in memory.store.metadata.models()
    (backup,) = (tmp_path / "m").glob("backup-0002-*.sqlite")
    for file in (backup, tmp_path / "m" / "ledger.sqlite"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = sqlite3.connect(backup)
    assert {row[0] for row in saved.execute("SELECT id FROM logs")} == set(traces)
    saved.close()
    with open_memory(tmp_path / "m") as memory:  # once is enough
        assert len(memory.recall("Which is number 1 ?")) == 3
    assert len(list((tmp_path / "m").glob("backup-*"))) == 1


def test_a_store_of_one_embedding_a_log_is_embedded_again(tmp_path):
    """The first schema had one embedding a log: now all keys are embedded, in the background."""
    traces = old_store(tmp_path / "m")
    folder = ChromaFolder.at(tmp_path / "m" / "index", tmp_path / "m" / "locks" / "index.lock")
    with folder.session(write=True) as client:
        client.create_collection("lag-abcdefabcdef-first-0123").add(
            ids=list(traces), embeddings=list(hash_embedder(list(traces)))
        )
    folder.close()
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        assert memory.verify() == []
        logs = {log.id: log for log in memory.store.ledger.info()}
        assert {key: log.trace for key, log in logs.items()} == traces
        assert {(log.state, log.times_helped) for log in logs.values()} == {("indexed", 4)}
        assert memory.store.embeddings.count() == 6
        found = memory.recall("Which is number 1 ?")
        assert len(found) == 3
        assert found[0].key.kind == "task"
        with folder.at(tmp_path / "m" / "index", tmp_path / "m" / "locks" / "index.lock").session(
            write=False
        ) as client:
            (collection,) = client.list_collections()
            assert not collection.name.startswith("lag-abcdefabcdef-first")
    assert len(list((tmp_path / "m").glob("backup-0002-*.sqlite"))) == 1


def test_a_migration_that_fails_changes_nothing(tmp_path):
    traces = old_store(tmp_path / "m")
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("UPDATE settings SET value = 'no JSON' WHERE key = 'embedder'")
    ledger.commit()
    with pytest.raises(StoreError, match="Nothing was changed"):
        open_memory(tmp_path / "m")
    assert not list((tmp_path / "m").glob("backup-*"))
    assert {row[0] for row in ledger.execute("SELECT id FROM logs")} == set(traces)
    assert not ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'lexical'").fetchall()
    ledger.execute("DELETE FROM settings WHERE key = 'embedder'")
    ledger.commit()
    ledger.close()
    with open_memory(tmp_path / "m") as memory:
        assert set(memory.store.ledger.ids()) == set(traces)


@pytest.mark.parametrize("version", ["0001", "0099"])
def test_a_store_of_an_unknown_version_is_refused(tmp_path, version):
    with open_memory(tmp_path / "m") as memory:
        memory.add(qa("Who ?", "Me ."))
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute(f"UPDATE alembic_version SET version_num = '{version}'")
    ledger.commit()
    ledger.close()
    with pytest.raises(StoreError, match=rf"{version}.*Upgrade lag_integrations"):
        open_memory(tmp_path / "m")


def test_another_database_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("CREATE TABLE logs (line TEXT)")
    ledger.commit()
    ledger.close()
    with pytest.raises(StoreError, match="another program's tables"):
        open_memory(tmp_path / "m")


@pytest.mark.parametrize(
    "url", ["mysql://h/db", "no url", "postgresql+nodriver://h/db", "sqlite:///x", "sqlite://"]
)
def test_an_unusable_url_is_refused(tmp_path, url):
    with pytest.raises(StoreError, match="ledger"):
        open_memory(tmp_path / "m", ledger=url)


def test_an_older_server_is_only_migrated_when_there_is_a_backup(tmp_path, database_url):
    Database(database_url, tmp_path).close()
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    engine.dispose()
    with pytest.raises(StoreError, match="pg_dump"):
        Database(database_url, tmp_path)


def test_a_server_is_migrated_with_its_logs(tmp_path, database_url):
    engine = create_engine(database_url)
    trace = qa("Which is number 1 ?", "That one .")
    row = {
        "id": log_id("default", trace),
        "hash": trace.content_hash,
        "seen": 1,
        "trace": trace.to_json(),
    }
    with engine.begin() as connection:
        command.upgrade(migrations.alembic_config(connection), FIRST)
        connection.execute(text(LOG), row)
        connection.execute(
            text("INSERT INTO embeddings VALUES (:id, 'default', NULL, :vector)"),
            {"id": row["id"], "vector": b"1234" * 48},
        )
    engine.dispose()
    database = Database(database_url, tmp_path, backed_up=True)
    assert database.migrated_from == "0002"
    database.close()
    with open_memory(tmp_path, ledger=database_url) as memory:
        memory.flush()
        assert memory.recall("Which is number 1 ?")[0].trace == trace
        assert memory.store.embeddings.count() == 2
        assert memory.verify() == []


def _is_ours(_object, name, kind, *_):
    """All but the tables of SQLite's full text search, and what is for PostgreSQL alone."""
    return not (kind == "table" and name.startswith("lexical_")) and name != "ix_lexical_words"


def test_segments_of_before_hashes_in_names_are_made_again(tmp_path, tiny, caplog):
    """The files had a checksum within; their names were those of now without the hash."""
    trace = qa("Which is number 1 ?", "That one .")
    with open_memory(tmp_path / "m") as memory:
        memory.attach(tiny)
        memory.add(trace)
        memory.flush()
        ((key, new, _),) = memory.store.segments.all_files()
    folder = tmp_path / "m" / "segments"
    old = f"{new.rpartition('-')[0]}.safetensors"
    data = (folder / new).read_bytes().replace(b'"format"', b'"checksum":"0","format"')
    (folder / new).unlink()
    (folder / old).write_bytes(data)
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("UPDATE segments SET file = ?", (old,))
    ledger.execute(
        "INSERT INTO segments SELECT log_id, 'evicted', selection, codec, NULL, 3, 0 FROM segments"
    )
    ledger.execute("UPDATE alembic_version SET version_num = '0006'")
    ledger.commit()
    ledger.close()
    with open_memory(tmp_path / "m") as memory:
        memory.attach(tiny)
        memory.flush()
        (found,) = memory.recall("Which is number 1 ?")
        assert found.trace == trace
        (segment,) = memory.segments([found], tiny)
        assert torch.equal(segment.token_ids, tiny.encode(trace).token_ids)
        ((again, file, _),) = memory.store.segments.all_files()
        assert again == key
        assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")] == [file]
        assert memory.store.segments.files(replace(key, fingerprint="evicted"), [key.log_id])
        assert memory.verify() == []
    assert caplog.text == ""


def test_revisions_and_tables_agree(tmp_path):
    """What migrations make is what the code declares, and the newest is what it expects."""
    old_store(tmp_path / "m")
    database = Database(None, tmp_path / "m")
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": _is_ours})
        assert compare_metadata(context, metadata) == []
        script = ScriptDirectory.from_config(migrations.alembic_config(connection))
        assert script.get_current_head() == migrations.HEAD
        assert {revision.revision for revision in script.walk_revisions()} == set(migrations._KNOWN)
        made = dict(connection.execute(text("SELECT name, sql FROM sqlite_master")).all())
    database.close()
    fresh = Database(None, tmp_path)
    with fresh.engine.connect() as connection:
        expected = dict(connection.execute(text("SELECT name, sql FROM sqlite_master")).all())
    fresh.close()

    def columns(sql: str | None) -> str:
        return re.sub(r'[\s"]+', " ", sql or "").lower()

    assert set(made) == set(expected)
    for name in ("logs", "tags", "embeddings", "segments", "failures", "removals"):
        assert sorted(columns(made[name]).split(",")) == sorted(
            columns(expected[name]).split(",")
        ), name


def test_booleans_are_told_from_numbers_in_older_stores(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        for value in (True, 1, [0, False]):
            memory.add(qa(f"Is it {value} ?", "Yes .", metadata={"k": value}))
        memory.flush()
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    for text_, number in (("true", 1), ("false", 0)):
        ledger.execute(
            "UPDATE tags SET text = NULL, number = ? WHERE text = ?", (number, f"\ufffe{text_}")
        )
    ledger.execute("UPDATE alembic_version SET version_num = '0004'")
    ledger.commit()
    ledger.close()
    with open_memory(tmp_path / "m") as memory:
        for value, task in ((True, "Is it True ?"), (1, "Is it 1 ?")):
            assert [log.trace.task for log in memory.recall("it", where={"k": value})] == [task]
        for value in (0, False):
            assert len(memory.recall("it", where={"k": value})) == 1


def test_a_store_that_the_first_version_wrote_opens_with_everything_in_it(tmp_path):
    """`store_0_1.zip` was written by commit fd80a9f, index and all."""
    with zipfile.ZipFile(Path(__file__).with_name("store_0_1.zip")) as archive:
        archive.extractall(tmp_path / "m")
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        logs = {log.trace.task: log.trace for log in memory.get(memory.store.ledger.ids())}
        assert {task: trace.outcome for task, trace in logs.items()} == {
            "Where is the key?": "success",
            "How do we ship to Norway?": "failure",
        }
        assert logs["Where is the key?"].metadata["project"] == "x"
        assert logs["Where is the key?"].last_response == "Behind the red door."
        for where in (None, {"project": "x"}):
            found = memory.recall("Where is the key?", where=where)[0]
            assert found.trace == logs["Where is the key?"]
        failed = "How do we ship to Norway?"
        assert failed not in [log.trace.task for log in memory.recall(failed)]
        assert memory.verify() == []
    with open_memory(tmp_path / "m", namespace="other") as memory:
        (found,) = memory.recall("Who has the van?")
        assert found.trace.last_response == "Ada has it."

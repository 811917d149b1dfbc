"""Schema versions: older stores are migrated after a backup, newer ones refused."""

from __future__ import annotations

import json
import re
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from lag_integrations.errors import StoreError
from lag_integrations.store import migrations
from lag_integrations.store.chroma import SharedFolder
from lag_integrations.store.database import Database
from lag_integrations.store.ledger import log_id
from lag_integrations.store.schema import metadata
from tests.conftest import qa
from tests.store.model import hash_embedder
from tests.store.processes import open_memory

# As the first release made it.
FIRST = """
CREATE TABLE logs (
    id VARCHAR(32) NOT NULL, namespace VARCHAR(64) NOT NULL, content_hash VARCHAR(64) NOT NULL,
    outcome VARCHAR(16) NOT NULL, trace TEXT NOT NULL, captured_at DATETIME NOT NULL,
    times_seen INTEGER NOT NULL, indexed BOOLEAN NOT NULL, error TEXT, PRIMARY KEY (id));
CREATE INDEX ix_logs_namespace ON logs (namespace);
CREATE INDEX ix_logs_indexed ON logs (indexed);
CREATE TABLE segments (
    log_id VARCHAR(32) NOT NULL, fingerprint VARCHAR(64) NOT NULL, selection VARCHAR(64) NOT NULL,
    file TEXT NOT NULL, tokens INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (log_id, fingerprint, selection),
    FOREIGN KEY(log_id) REFERENCES logs (id) ON DELETE CASCADE);
CREATE TABLE models (
    fingerprint VARCHAR(64) NOT NULL, parts TEXT NOT NULL, PRIMARY KEY (fingerprint));
CREATE TABLE settings (
    "key" VARCHAR(64) NOT NULL, value TEXT NOT NULL, PRIMARY KEY ("key"));
INSERT INTO settings VALUES ('schema_version', '1');
"""


def first_store(folder: Path, logs: int = 3) -> dict[str, str]:
    """A store of the first schema; gives its traces by id."""
    folder.mkdir()
    ledger = sqlite3.connect(folder / "ledger.sqlite")
    ledger.execute("PRAGMA journal_mode=WAL")
    ledger.executescript(FIRST)
    traces = {}
    for number in range(logs):
        trace = qa(f"Which is number {number} ?", "That one .", metadata={"number": number})
        key = log_id("default", trace)
        traces[key] = trace
        ledger.execute(
            "INSERT INTO logs VALUES (?, 'default', ?, ?, ?, '2026-11-20 10:00:00.5', ?, 1, NULL)",
            (key, trace.content_hash, trace.outcome, trace.to_json(), number + 1),
        )
        file = f"segments/abc/last_response/{key}.safetensors"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"the old format")
        values = (key, "abc", "last_response", file, 3, 14)
        ledger.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)", values)
    ledger.execute("INSERT INTO models VALUES ('abc', '{}')")
    probe = hash_embedder(["The quick brown fox jumps over the lazy dog."])[0]
    probe /= (probe**2).sum() ** 0.5
    embedder = {"name": "function", "vector": [round(float(x), 5) for x in probe]}
    ledger.execute("INSERT INTO settings VALUES ('embedder', ?)", (json.dumps(embedder),))
    ledger.commit()
    ledger.close()
    return traces


def test_the_first_schema_is_migrated_after_a_backup(tmp_path):
    traces = first_store(tmp_path / "m")
    before = (tmp_path / "m" / "ledger.sqlite").read_bytes()
    with open_memory(tmp_path / "m") as memory:
        memory.flush()
        logs = {log.id: log for log in memory.store.ledger.info()}
        assert {key: log.trace for key, log in logs.items()} == traces
        assert sorted(log.times_seen for log in logs.values()) == [1, 2, 3]
        assert {log.captured_at for log in logs.values()} == {1795168800.5}
        assert len(memory.recall("Which is number 1 ?")) == 3
        assert len(memory.recall("Which is number 1 ?", where={"number": {"$gt": 0}})) == 2
        assert memory.verify() == []
        assert "abc" in memory.store.facts.models()
    (backup,) = (tmp_path / "m").glob("backup-0001-*.sqlite")
    assert backup.read_bytes()[:16] == before[:16]
    for file in (backup, tmp_path / "m" / "ledger.sqlite"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = sqlite3.connect(backup)
    assert {row[0] for row in saved.execute("SELECT id FROM logs")} == set(traces)
    saved.close()
    with open_memory(tmp_path / "m") as memory:  # once is enough
        assert len(memory.recall("Which is number 1 ?")) == 3
    assert len(list((tmp_path / "m").glob("backup-*"))) == 1


def second_store(folder: Path, logs: int = 3) -> dict[str, str]:
    """A store of the second schema, with one embedding a log; gives its traces by id."""
    traces = first_store(folder, logs)
    engine = create_engine(f"sqlite:///{folder / 'ledger.sqlite'}")
    with engine.begin() as connection:
        config = migrations.alembic_config(connection)
        command.stamp(config, "0001")
        command.upgrade(config, "0002")
        for key, vector in zip(traces, hash_embedder(list(traces)), strict=True):
            connection.execute(
                text("INSERT INTO embeddings VALUES (:key, 'default', 'old', :vector)"),
                {"key": key, "vector": (vector / 7).astype("<f4").tobytes()},
            )
        connection.execute(text("UPDATE logs SET embedded = 1, times_helped = 4"))
        connection.execute(text("INSERT INTO settings VALUES ('store_id', 'abcdefabcdef')"))
    engine.dispose()
    return traces


def test_a_store_of_one_embedding_a_log_is_embedded_again(tmp_path):
    """The second schema had one embedding a log: now all keys are embedded, in the background."""
    traces = second_store(tmp_path / "m")
    folder = SharedFolder.at(tmp_path / "m" / "index", tmp_path / "m" / "locks" / "index.lock")
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
    traces = first_store(tmp_path / "m")
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("UPDATE logs SET captured_at = 'yesterday' WHERE times_seen = 2")
    ledger.commit()
    with pytest.raises(StoreError, match="Nothing was changed"):
        open_memory(tmp_path / "m")
    assert not list((tmp_path / "m").glob("backup-*"))
    assert {row[0] for row in ledger.execute("SELECT id FROM logs")} == set(traces)
    assert not ledger.execute("SELECT 1 FROM sqlite_master WHERE name = 'embeddings'").fetchall()
    ledger.execute("UPDATE logs SET captured_at = '2026-11-20 10:00:00'")
    ledger.commit()
    ledger.close()
    with open_memory(tmp_path / "m") as memory:
        assert set(memory.store.ledger.ids()) == set(traces)


def test_a_newer_store_is_refused(tmp_path):
    with open_memory(tmp_path / "m") as memory:
        memory.add(qa("Who ?", "Me ."))
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("UPDATE alembic_version SET version_num = '0099'")
    ledger.commit()
    ledger.close()
    with pytest.raises(StoreError, match=r"0099.*Upgrade lag_integrations"):
        open_memory(tmp_path / "m")


def test_another_database_is_refused(tmp_path):
    (tmp_path / "m").mkdir()
    ledger = sqlite3.connect(tmp_path / "m" / "ledger.sqlite")
    ledger.execute("CREATE TABLE logs (line TEXT)")
    ledger.commit()
    ledger.close()
    with pytest.raises(StoreError, match="none"):
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
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    engine.dispose()
    with pytest.raises(StoreError, match="pg_dump"):
        Database(database_url, tmp_path)


def test_a_server_is_migrated_with_its_logs(tmp_path, database_url):
    engine = create_engine(database_url)
    trace = qa("Which is number 1 ?", "That one .")
    row = {"id": log_id("default", trace), "hash": trace.content_hash, "trace": trace.to_json()}
    with engine.begin() as connection:
        command.upgrade(migrations.alembic_config(connection), "0002")
        connection.execute(
            text(
                "INSERT INTO logs VALUES (:id, 'default', :hash, 'success', 1, 1, 1, 0, 0, 0, "
                "true, 10, :trace)"
            ),
            row,
        )
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
        assert memory.recall("Which is number 1 ?")[0].log == trace
        assert memory.store.embeddings.count() == 2
        assert memory.verify() == []


def _is_ours(_object, name, kind, *_):
    """All but the tables of SQLite's full text search, and what is for PostgreSQL alone."""
    return not (kind == "table" and name.startswith("lexical_")) and name != "ix_lexical_words"


def test_revisions_and_tables_agree(tmp_path):
    """What migrations make is what the code declares, and the newest is what it expects."""
    first_store(tmp_path / "m")
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
            assert [log.log.task for log in memory.recall("it", where={"k": value})] == [task]
        for value in (0, False):
            assert len(memory.recall("it", where={"k": value})) == 1

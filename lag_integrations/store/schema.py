"""The tables of the ledger. A change needs a migration (see `migrations`)."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    event,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.schema import ExecutableDDLElement

metadata = MetaData()

logs = Table(
    "logs",
    metadata,
    Column("id", String(32), primary_key=True),  # a hash of namespace and content
    Column("namespace", String(64), nullable=False),
    Column("content_hash", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    # Unix seconds; of the last capture, where a run was captured several times.
    Column("captured_at", Float, nullable=False),
    Column("used_at", Float, nullable=False),  # last captured, imported or recalled
    Column("times_seen", Integer, nullable=False),
    Column("times_recalled", Integer, nullable=False),
    Column("times_helped", Integer, nullable=False),
    Column("times_harmed", Integer, nullable=False),
    Column("embedded", Boolean, nullable=False),
    Column("bytes", Integer, nullable=False),  # of the trace
    Column("trace", Text, nullable=False),  # last: long rows are read up to the column asked for
    Index("ix_logs_embedded", "namespace", "embedded", "captured_at"),
    Index("ix_logs_captured", "namespace", "captured_at"),
    Index("ix_logs_bytes", "namespace", "bytes"),
)

tags = Table(
    "tags",
    metadata,
    Column("log_id", ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("position", Integer, primary_key=True),  # a list in the metadata is several rows
    Column("text", Text),
    Column("number", Float),
    Index("ix_tags_text", "key", "text", "log_id"),
    Index("ix_tags_number", "key", "number", "log_id"),
)

# One row for each key of a log: see `search_keys`.
embeddings = Table(
    "embeddings",
    metadata,
    Column("log_id", ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Integer, primary_key=True, autoincrement=False),  # its number among the log's
    Column("namespace", String(64), nullable=False),
    Column("indexed_in", String(64)),  # identity of the Chroma collection that holds it
    Column("vector", LargeBinary, nullable=False),  # fp32, little endian, of norm 1
    Index("ix_embeddings_indexed", "namespace", "indexed_in"),
)

# The words of each log, as hashes: see `LexicalIndex`.
lexical = Table(
    "lexical",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),  # FTS5 knows rows by number
    Column("log_id", ForeignKey("logs.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("words", Text().with_variant(TSVECTOR(), "postgresql"), nullable=False),
)
Index("ix_lexical_words", lexical.c.words, postgresql_using="gin").ddl_if(dialect="postgresql")

LEXICAL_SQLITE = (
    "CREATE VIRTUAL TABLE lexical_fts USING fts5(words, content='lexical', content_rowid='id', "
    "detail=none, columnsize=0, tokenize='ascii')",
    "CREATE VIRTUAL TABLE lexical_vocabulary USING fts5vocab('lexical_fts', 'row')",
    "CREATE TRIGGER lexical_added AFTER INSERT ON lexical BEGIN "
    "INSERT INTO lexical_fts(rowid, words) VALUES (new.id, new.words); END",
    "CREATE TRIGGER lexical_removed AFTER DELETE ON lexical BEGIN "
    "INSERT INTO lexical_fts(lexical_fts, rowid, words) VALUES ('delete', old.id, old.words); END",
)
"""What SQLite needs besides the table: FTS5 stores no words, and follows it by triggers."""
for _statement in LEXICAL_SQLITE:
    _ddl: ExecutableDDLElement = DDL(_statement)  # type: ignore[no-untyped-call]
    event.listen(lexical, "after_create", _ddl.execute_if(dialect="sqlite"))

segments = Table(
    "segments",
    metadata,
    Column("log_id", ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("selection", String(64), primary_key=True),
    Column("codec", String(16), primary_key=True),
    Column("file", Text),  # null: evicted; made again when the log is recalled
    Column("tokens", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
)

failures = Table(
    "failures",
    metadata,
    Column("log_id", ForeignKey("logs.id", ondelete="CASCADE"), primary_key=True),
    Column("task", String(160), primary_key=True),
    Column("error", Text, nullable=False),
)

# Removals outside of the database that a transaction decided, until they are carried out.
removals = Table(
    "removals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("namespace", String(64), nullable=False, index=True),
    Column("log_id", String(32)),  # an entry of the index
    Column("file", Text),  # a segment file
)

models = Table(
    "models",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("parts", Text, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("key", String(128), primary_key=True),
    Column("value", Text, nullable=False),
)

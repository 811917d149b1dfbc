"""Settings of the whole store: its embedder, key, models and their calibrations."""

from __future__ import annotations

import json
import secrets
from uuid import uuid4

from sqlalchemy import Connection, select

from lag_integrations.store.database import Database
from lag_integrations.store.schema import models, settings

EMBEDDER = "embedder"
"""Key of the embedder's record: name, dimension, generation, and one known embedding."""
SIGNING_KEY = "signing_key"
"""Key of the secret, in hexadecimal, that signs the store's archives."""
_DELETION = "deletion:"
"""Prefix of the keys of what changes with each deletion in a namespace."""
_CALIBRATION = "calibration:"
"""Prefix of the keys of calibrations; the model's fingerprint follows."""


def put_setting(database: Database, connection: Connection, key: str, value: str) -> None:
    """Set a setting within a transaction."""
    connection.execute(
        database.upsert(settings)
        .values(key=key, value=value)
        .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": value})
    )


def note_deletion(database: Database, connection: Connection, namespace: str) -> None:
    """Tell other processes, within the transaction that deletes, to drop what they hold."""
    put_setting(database, connection, _DELETION + namespace, uuid4().hex)


def generation_of(record: str | None) -> str:
    """Return the generation of an embedder's record: each `reindex` begins a new one."""
    return "none" if record is None else str(json.loads(record).get("generation", "first"))


class StoreMetadata:
    """Settings and models of all namespaces.

    Args:
        database: The ledger's database.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    def setting(self, key: str) -> str | None:
        """Return a setting; None if it was never set."""
        with self._db.read() as connection:
            return connection.execute(
                select(settings.c.value).where(settings.c.key == key)
            ).scalar_one_or_none()

    def first_setting(self, key: str, value: str) -> str:
        """Return a setting, after setting it to a value if it was never set."""
        found = self.setting(key)
        if found is None and not self._db.read_only:
            with self._db.write() as connection:
                connection.execute(
                    self._db.upsert(settings).values(key=key, value=value).on_conflict_do_nothing()
                )
            found = self.setting(key)
        return value if found is None else found

    def signing_key(self) -> bytes:
        """Return the secret of 32 bytes that signs the store's archives."""
        return bytes.fromhex(self.first_setting(SIGNING_KEY, secrets.token_hex(32)))

    def new_signing_key(self) -> None:
        """Replace the secret."""
        with self._db.write() as connection:
            put_setting(self._db, connection, SIGNING_KEY, secrets.token_hex(32))

    def generation(self) -> str:
        """Return the generation of the store's embedder; ``none`` if it has none yet."""
        return generation_of(self.setting(EMBEDDER))

    def last_deletion(self, namespace: str) -> str | None:
        """Return a token that is another one after each deletion; None before the first."""
        return self.setting(_DELETION + namespace)

    def calibration(self, fingerprint: str) -> str | None:
        """Return a model's calibration, as JSON."""
        return self.setting(_CALIBRATION + fingerprint)

    def set_calibration(self, fingerprint: str, text: str) -> None:
        """Store a model's calibration, unless the store can only be read."""
        if self._db.read_only:
            return
        with self._db.write() as connection:
            put_setting(self._db, connection, _CALIBRATION + fingerprint, text)

    def add_model(self, fingerprint: str, parts: str) -> None:
        """Store a model's fingerprint parts, so that errors can tell how another model differs."""
        if self._db.read_only or fingerprint in self.models():
            return
        with self._db.write() as connection:
            connection.execute(
                self._db.upsert(models)
                .values(fingerprint=fingerprint, parts=parts)
                .on_conflict_do_nothing()
            )

    def models(self) -> dict[str, str]:
        """Return fingerprint parts, as JSON, by fingerprint id."""
        with self._db.read() as connection:
            return {row.fingerprint: row.parts for row in connection.execute(select(models))}

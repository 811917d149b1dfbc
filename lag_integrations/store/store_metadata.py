"""Facts about the whole store: its embedder, the models that used it, and their calibrations."""

from __future__ import annotations

import json
import secrets
from uuid import uuid4

from sqlalchemy import Connection, delete, insert, select

from lag_integrations.store.database import Database
from lag_integrations.store.schema import logs, models, removals, segments, settings

EMBEDDER = "embedder"
"""The setting that holds the embedder: name, dimension, generation, and one known embedding."""

SIGNING_KEY = "signing_key"
"""The setting that holds the key, in hexadecimal, by which the store knows its own files."""
_DELETION = "deletion:"
"""Begins the setting that changes with each deletion in a namespace."""
_CALIBRATION = "calibration:"
"""Begins the setting that holds a model's calibration; its fingerprint follows."""


def note_deletion(database: Database, connection: Connection, namespace: str) -> None:
    """Say, within the transaction that deletes, that others have to let go of what they hold."""
    token = uuid4().hex
    connection.execute(
        database.upsert(settings)
        .values(key=_DELETION + namespace, value=token)
        .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": token})
    )


def generation_of(record: str | None) -> str:
    """Tells the embedder of a record from those before it: a new one with each `reindex`."""
    return "none" if record is None else str(json.loads(record).get("generation", "first"))


class StoreMetadata:
    """Settings and models. They hold for all namespaces.

    Args:
        database: Where they are kept.
    """

    def __init__(self, database: Database) -> None:
        self._db = database

    def setting(self, key: str) -> str | None:
        """A setting of the store."""
        with self._db.read() as connection:
            return connection.execute(
                select(settings.c.value).where(settings.c.key == key)
            ).scalar_one_or_none()

    def first_setting(self, key: str, value: str) -> str:
        """A setting; the first caller's value is what is recorded."""
        found = self.setting(key)
        if found is None and not self._db.read_only:
            with self._db.write() as connection:
                connection.execute(
                    self._db.upsert(settings).values(key=key, value=value).on_conflict_do_nothing()
                )
            found = self.setting(key)
        return value if found is None else found

    def signing_key(self) -> bytes:
        """Return the secret, 32 bytes, by which the store knows its own files."""
        return bytes.fromhex(self.first_setting(SIGNING_KEY, secrets.token_hex(32)))

    def new_signing_key(self) -> None:
        """Take another secret, and forget the segments of all namespaces; their files go, too."""
        secret = secrets.token_hex(32)
        files = select(logs.c.namespace, segments.c.file).join_from(segments, logs)
        with self._db.write() as connection:
            connection.execute(
                self._db.upsert(settings)
                .values(key=SIGNING_KEY, value=secret)
                .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": secret})
            )
            connection.execute(
                insert(removals).from_select(
                    ["namespace", "file"], files.where(segments.c.file.is_not(None))
                )
            )
            connection.execute(delete(segments))

    def generation(self) -> str:
        """The generation of the store's embedder; ``none`` if it has none yet."""
        return generation_of(self.setting(EMBEDDER))

    def last_deletion(self, namespace: str) -> str | None:
        """Return what `note_deletion` wrote last: another text after each deletion."""
        return self.setting(_DELETION + namespace)

    def calibration(self, fingerprint: str) -> str | None:
        """Return a model's calibration, as JSON."""
        return self.setting(_CALIBRATION + fingerprint)

    def set_calibration(self, fingerprint: str, text: str) -> None:
        """Keep a model's calibration in place of an earlier one, where that can be written."""
        if self._db.read_only:
            return
        with self._db.write() as connection:
            connection.execute(
                self._db.upsert(settings)
                .values(key=_CALIBRATION + fingerprint, value=text)
                .on_conflict_do_update(index_elements=[settings.c.key], set_={"value": text})
            )

    def add_model(self, fingerprint: str, parts: str) -> None:
        """Remember a model's fingerprint parts, to say later in what another model differs."""
        if self._db.read_only or fingerprint in self.models():
            return
        with self._db.write() as connection:
            connection.execute(
                self._db.upsert(models)
                .values(fingerprint=fingerprint, parts=parts)
                .on_conflict_do_nothing()
            )

    def models(self) -> dict[str, str]:
        """Fingerprint parts, as JSON, by fingerprint id."""
        with self._db.read() as connection:
            return {row.fingerprint: row.parts for row in connection.execute(select(models))}

"""Facts about the whole store: the embedder it was built with, the models that used it."""

from __future__ import annotations

from sqlalchemy import delete, select

from lag_integrations.store.database import Database
from lag_integrations.store.schema import models, settings


class Facts:
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
        if found is None:
            with self._db.write() as connection:
                connection.execute(
                    self._db.upsert(settings).values(key=key, value=value).on_conflict_do_nothing()
                )
            found = self.setting(key)
        return value if found is None else found

    def forget_setting(self, key: str) -> None:
        """Let the next caller of `first_setting` decide anew."""
        with self._db.write() as connection:
            connection.execute(delete(settings).where(settings.c.key == key))

    def add_model(self, fingerprint: str, parts: str) -> None:
        """Remember a model's fingerprint parts, to say later in what another model differs."""
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

"""The Chroma index: the embeddings of search keys, one collection a namespace. Derived."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lag_integrations.errors import BusyError, ForkedError, StoreError
from lag_integrations.store.chroma.access import ChromaAccess
from lag_integrations.store.embedder import Vectors
from lag_integrations.store.embeddings import Entry
from lag_integrations.traces.search_keys import MAX_KEYS

if TYPE_CHECKING:
    from chromadb.api.models.Collection import Collection

_BATCH = 256
"""Entries a write: others wait for the lock for a fifth of a second."""
_REMOVED_LOGS = 100
"""Logs a removal; most have two or three entries."""


class Index:
    """Finds the search keys nearest to a vector by cosine similarity, in one namespace.

    It holds no text and no metadata: the ledger decides what may be recalled.

    Args:
        access: The Chroma database.
        store_id: The store this object is confined to: a server may hold several.
        namespace: The namespace this object is confined to.
        generation: Returns the generation of the store's embedder: each has its own collection.
    """

    def __init__(
        self, access: ChromaAccess, store_id: str, namespace: str, generation: Callable[[], str]
    ) -> None:
        self._access = access
        self._prefix = f"lag-{store_id}-"
        # Chroma's names are narrower than ours.
        self._suffix = hashlib.sha256(namespace.encode()).hexdigest()[:32]
        self._generation = generation

    def identity(self) -> str:
        """Return the id of the collection, a new one after the index was rebuilt."""
        with self._collection(write=False) as collection:
            return str(collection.id)

    def add(self, entries: Sequence[Entry], vectors: Vectors) -> str:
        """Add or replace embeddings, fp32 ``[entries, dimension]``; return the `identity`."""
        ids = [_name(entry) for entry in entries]
        with self._collection(write=True) as collection:
            for start in range(0, len(ids), _BATCH):
                part = slice(start, start + _BATCH)
                collection.upsert(ids=ids[part], embeddings=list(vectors[part]))
            if not self._wait_until_written(collection, vectors[-1]):
                raise StoreError("The Chroma index does not hold what was just written to it.")
            return str(collection.id)

    def remove(self, log_ids: Sequence[str]) -> None:
        """Remove all entries of some logs; logs without entries are fine."""
        with self._collection(write=True) as collection:
            some_vector = collection.get(limit=1, include=["embeddings"])["embeddings"]
            if some_vector is None or not len(some_vector):
                return
            for start in range(0, len(log_ids), _REMOVED_LOGS):
                some = log_ids[start : start + _REMOVED_LOGS]
                names = [_name((log_id, key)) for log_id in some for key in range(MAX_KEYS)]
                if held := collection.get(ids=names, include=[])["ids"]:
                    collection.delete(ids=held)
            self._wait_until_written(collection, some_vector[0])

    def search(self, vector: Vectors, n: int) -> tuple[str, list[tuple[Entry, float]]]:
        """Return the `identity` and the n nearest entries with their cosine similarities.

        The best entry comes first.
        """
        with self._collection(write=False) as collection:
            found = collection.query(query_embeddings=[vector], n_results=n, include=["distances"])
            distances = (found["distances"] or [[]])[0]
            pairs = zip(found["ids"][0], distances, strict=True)
            return str(collection.id), [
                (_entry(name), 1.0 - float(distance)) for name, distance in pairs
            ]

    def entries(self) -> set[Entry]:
        """Return all entries."""
        with self._collection(write=False) as collection:
            return {_entry(name) for name in collection.get(include=[])["ids"]}

    def drop(self) -> None:
        """Remove the namespace's collections, of every generation."""
        self._drop(lambda name: name.endswith(self._suffix))

    def drop_all(self) -> None:
        """Remove the collections of all namespaces of the store."""
        self._drop(lambda name: True)

    def drop_older(self) -> None:
        """Remove the collections of earlier generations, of all namespaces of the store."""
        newest = f"{self._prefix}{self._generation()[:8]}-"
        self._drop(lambda name: not name.startswith(newest))

    def _drop(self, which: Callable[[str], bool]) -> None:
        with self._explained(), self._access.session(write=True) as client:
            for collection in client.list_collections():
                if collection.name.startswith(self._prefix) and which(collection.name):
                    client.delete_collection(collection.name)

    @property
    def is_served(self) -> bool:
        """Whether a server keeps its files."""
        return self._access.served

    def rewrite(self) -> bool:
        """Remove what was deleted from the disk; return whether that was possible."""
        with self._explained():
            return self._access.rewrite()

    def reset(self) -> None:
        """Make the index empty, whatever state the database is in."""
        try:
            self.drop()
        except (BusyError, ForkedError):
            raise  # which is no fault of the database
        except StoreError:
            self._access.reset()

    def close(self) -> None:
        """Release the database."""
        self._access.close()

    def _wait_until_written(self, collection: Collection, vector: Vectors) -> bool:
        """Ask for an entry, which waits for Chroma to write: its calls return earlier.

        Returns:
            Whether there is one.
        """
        found = collection.query(query_embeddings=[vector], n_results=1, include=["distances"])
        return bool(found["ids"][0])

    @contextmanager
    def _collection(self, *, write: bool) -> Iterator[Collection]:
        with self._explained(), self._access.session(write=write) as client:
            yield client.get_or_create_collection(
                f"{self._prefix}{self._generation()[:8]}-{self._suffix}",
                embedding_function=None,  # never Chroma's own, which downloads a model
                # Twice the usual neighbours: among near-duplicates, some would not be reached.
                configuration={"hnsw": {"space": "cosine", "max_neighbors": 32}},
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except BaseException as error:  # Chroma's own family, its HTTP client's, Rust panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if "Timeout" in type(error).__name__:  # the HTTP client's
                raise BusyError(
                    f"The Chroma server does not answer ({type(error).__name__}). It is asked "
                    "again; see whether it is stopped."
                ) from error
            raise StoreError(
                f"The Chroma index failed ({type(error).__name__}: {str(error)[:300]}). It is "
                "derived: `kvlog reindex` makes it again."
            ) from error


def _name(entry: Entry) -> str:
    log_id, key = entry
    return f"{log_id}-{key}"


def _entry(name: str) -> Entry:
    log_id, _, key = name.partition("-")
    return log_id, int(key)

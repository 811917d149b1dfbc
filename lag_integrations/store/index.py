"""The Chroma index: embeddings of logs, one collection a namespace, with our own embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings

from lag_integrations.errors import StoreError
from lag_integrations.store.embedder import Vectors


class Index:
    """Finds the logs nearest to a query by cosine similarity. Derived: it can be made again.

    Args:
        path: Folder of the embedded Chroma database.
        namespace: The namespace this object is confined to.

    Raises:
        StoreError: The folder cannot be opened as a Chroma database.
    """

    def __init__(self, path: Path, namespace: str) -> None:
        # Chroma's names are narrower than ours.
        name = f"lag-{hashlib.sha256(namespace.encode()).hexdigest()[:32]}"
        try:
            self._client = chromadb.PersistentClient(
                str(path), settings=Settings(anonymized_telemetry=False)
            )
            self._collection = self._client.get_or_create_collection(
                name,
                embedding_function=None,  # never Chroma's own, which downloads a model
                configuration={"hnsw": {"space": "cosine"}},
            )
        except Exception as error:  # Chroma's own family has no common base
            raise StoreError(
                f"The index {path} cannot be opened ({error}). It is derived: delete that folder, "
                "and the traces are embedded again."
            ) from error

    def count(self) -> int:
        """Number of logs it holds."""
        return int(self._collection.count())

    def add(self, ids: Sequence[str], vectors: Vectors, outcomes: Sequence[str]) -> None:
        """Add or replace the embeddings of logs."""
        self._collection.upsert(
            ids=list(ids),
            embeddings=list(vectors),
            metadatas=[{"outcome": outcome} for outcome in outcomes],
        )

    def search(
        self, vector: Vectors, *, k: int, outcomes: Sequence[str]
    ) -> list[tuple[str, float]]:
        """The k nearest logs with one of the outcomes: ids and cosine similarities, best first."""
        where: Any = {"outcome": {"$in": list(outcomes)}}
        found = self._collection.query(
            query_embeddings=[vector], n_results=k, where=where, include=["distances"]
        )
        distances = (found["distances"] or [[]])[0]
        return [
            (key, 1.0 - distance) for key, distance in zip(found["ids"][0], distances, strict=True)
        ]

    def close(self) -> None:
        """Release the database."""
        self._client.close()

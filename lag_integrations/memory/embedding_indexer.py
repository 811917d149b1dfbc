"""Embeddings of the search keys of logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import Any
from uuid import uuid4

import numpy as np

from lag_integrations.errors import EmbedderMismatchError, LAGError, StoreError
from lag_integrations.memory.patient_locks import PatientLocks
from lag_integrations.store.embedder import Embedder, Vectors
from lag_integrations.store.embeddings import EMBED, Entry
from lag_integrations.store.locks import retry_while_busy
from lag_integrations.store.relevance.measure import relevance_of
from lag_integrations.store.relevance.model import Relevance
from lag_integrations.store.search_hit import Query
from lag_integrations.store.store import LogStore
from lag_integrations.store.store_metadata import EMBEDDER, generation_of
from lag_integrations.traces.search_keys import search_keys
from lag_integrations.traces.trace import Trace

logger = logging.getLogger(__name__)

_EMBED_AT_ONCE = 64
_PROBE_TEXT = "The quick brown fox jumps over the lazy dog."


class EmbeddingIndexer:
    """Embeds logs and queries with the store's embedder.

    Args:
        store: The store.
        embedder: Makes the embeddings.
        locks: Keep other processes from doing the same.
    """

    def __init__(self, store: LogStore, embedder: Embedder, locks: PatientLocks) -> None:
        self._store = store
        self._embedder = embedder
        self._locks = locks
        self._generation = ""  # of the embedder, once it was compared with the store's
        self._dimension = 0
        self._relevance = Relevance(0.0, 1.0, 0.0)  # until the embedder is known

    def embed_query(self, text: str) -> Query:
        """Embed a text that logs are searched by.

        Raises:
            EmbedderMismatchError: The store was built with another embedder.
        """
        self._check_embedder()
        vector = self._embedder.embed_query(text)
        if vector.shape != (self._dimension,):
            raise StoreError(
                f"The embedder {self._embedder.name!r} gave a vector of shape {vector.shape} for "
                f"the query; {self._dimension} dimensions are expected."
            )
        return Query(text, vector)

    @property
    def relevance(self) -> Relevance:
        """What similarities mean with this store's embedder."""
        self._check_embedder()
        return self._relevance

    def adopt_embedder(self) -> None:
        """Take this embedder for the store's from now on: every namespace is embedded again."""
        self._embedder.forget_queries()
        self._store.embeddings.adopt(json.dumps(self._describe_embedder()))
        retry_while_busy(self._store.index.drop_all)
        self._generation = ""
        self._check_embedder()

    def embed_some(self, *, wait: bool) -> bool:
        """Embed some logs; return False if others are at all that are left, or none is.

        Args:
            wait: Whether to wait for others who are at it.

        Raises:
            StoreError: The store or the embedder fails, or the embedder is not the store's.
        """
        if not self._store.embeddings.count_missing(limit=1):
            return False
        self._check_embedder()
        name = f"embed-{self._store.namespace}"
        lock: AbstractContextManager[set[str] | None] = (
            self._locks.hold(name) if wait else self._store.locks.try_hold([name])
        )
        with lock as held:
            if held is not None and not held:
                return False  # another process is at it
            waiting = self._store.embeddings.missing(limit=_EMBED_AT_ONCE)
            if waiting:
                self._embed(waiting)
        return bool(waiting)

    def _embed(self, waiting: Sequence[tuple[str, Trace]]) -> None:
        """Embed logs; one by one if it does not work for all, so that a bad one is found."""
        try:
            self._embed_together(waiting)
            return
        except EmbedderMismatchError:
            raise
        except Exception:
            self._embedder.embed([_PROBE_TEXT])  # if this fails, too, it is not the logs
        for log_id, trace in waiting:
            try:
                self._embed_together([(log_id, trace)])
            except EmbedderMismatchError:
                raise
            except Exception as error:
                logger.debug("Log %s cannot be embedded.", log_id, exc_info=True)
                # The name only: others' messages may repeat the text.
                reason = str(error) if isinstance(error, LAGError) else type(error).__name__
                self._store.failures.add(log_id, EMBED, reason)

    def _embed_together(self, logs: Sequence[tuple[str, Trace]]) -> None:
        """Embed the search keys of logs and record them.

        A key without a usable embedding is left out; a log fails if none of its keys has one.
        """
        keys = {
            (log_id, number): key.text
            for log_id, trace in logs
            for number, key in enumerate(search_keys(trace))
        }
        vectors = self._embedder.embed(list(keys.values()))
        if vectors.shape != (len(keys), self._dimension):
            raise StoreError(
                f"The embedder {self._embedder.name!r} gave vectors of shape {vectors.shape} for "
                f"{len(keys)} texts; {self._dimension} dimensions are expected."
            )
        good: list[bool] = (np.linalg.norm(vectors, axis=1) > 0.5).tolist()  # not zero, not NaN
        entries = [entry for entry, fine in zip(keys, good, strict=True) if fine]
        self._store.lexical.add(_whole(keys))
        self._store.embeddings.add(entries, vectors[good], self._generation)
        for log_id in {log_id for log_id, _ in logs} - {log_id for log_id, _ in entries}:
            self._store.failures.add(log_id, EMBED, "The embedding is zero or not finite.")

    def _describe_embedder(self) -> dict[str, Any]:
        vector = self._embedder.embed([_PROBE_TEXT])[0]
        if not np.linalg.norm(vector) > 0.5:
            raise StoreError(f"The embedder {self._embedder.name!r} gives no finite vectors.")
        return {
            "name": self._embedder.name,
            "dimension": len(vector),
            "generation": uuid4().hex,
            "vector": [round(float(x), 5) for x in vector],
        }

    def _check_embedder(self) -> None:
        """Compare the embedder with the store's, by how each embeds one known sentence."""
        if self._generation and self._generation == self._store.metadata.generation():
            return
        mine = self._describe_embedder()
        recorded = json.loads(self._store.metadata.first_setting(EMBEDDER, json.dumps(mine)))
        ours, theirs = (np.asarray(one["vector"], dtype=np.float32) for one in (mine, recorded))
        if ours.shape != theirs.shape or not float(theirs @ ours) >= 0.999:
            raise EmbedderMismatchError(
                f"The store at {self._store.path} was built with the embedder "
                f"{recorded['name']!r} ({len(theirs)} dimensions), not with "
                f"{self._embedder.name!r} ({len(ours)}). Open it with that embedder, or call "
                "memory.reindex() (`kvlog reindex`) to embed every trace with this one."
            )
        self._dimension = len(ours)
        self._relevance = self._measured(generation_of(json.dumps(recorded)), ours)
        self._generation = generation_of(json.dumps(recorded))

    def _measured(self, generation: str, probe: Vectors) -> Relevance:
        """Return what the store's record says of its embedder, which is measured once a store."""
        key = f"relevance:{generation}"
        found = self._store.metadata.setting(key)
        if found is None:
            relevance = relevance_of(self._embedder, probe)
            found = self._store.metadata.first_setting(key, json.dumps(astuple(relevance)))
        return Relevance(*json.loads(found))


def _whole(keys: Mapping[Entry, str]) -> dict[str, str]:
    """Return all that logs are searched by, a text each."""
    texts: dict[str, list[str]] = {}
    for (log_id, _), text in keys.items():
        texts.setdefault(log_id, []).append(text)
    return {log_id: "\n".join(found) for log_id, found in texts.items()}
